"""Networks by name, randomly initialised from PyTorch's global seed.

A network of your own joins by one line; its function gets what `StreamShape` holds:

    register_model("mine", lambda num_classes, input_shape, task_labels: MyNetwork(num_classes))
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from avalanche.models import MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from benchmarks.resnet import MultiHeadSlimResNet18, SlimResNet18
from plasticity.errors import UserError, unknown
from plasticity.values import shown

Factory = Callable[[int, tuple[int, ...], bool], nn.Module]
MODELS: dict[str, Factory] = {}
MOST_WEIGHTS = 10**9
"""Of a network whose size is given by its name."""


def register_model(name: str, factory: Factory) -> None:
    """Add a network under a name.

    Args:
        name: As in a benchmark's `model`.
        factory: Called as `factory(num_classes, input_shape, task_labels)`: width of a head, shape of one sample,
            whether there is to be a head for each task label (the network is then an Avalanche `MultiTaskModule`).

    Raises:
        UserError: If the name is taken.
    """
    if name in MODELS:
        raise UserError(f"a model named {name!r} is registered already")
    MODELS[name] = factory


def build_model(name: str, num_classes: int, input_shape: tuple[int, ...], task_labels: bool = False) -> nn.Module:
    """Make a network with random weights, drawn from PyTorch's global random state.

    Args:
        name: A registered name, or `mlp-3x128` with any other number of hidden layers and of units in each.
        num_classes: Width of a head.
        input_shape: Shape of one sample.
        task_labels: Whether there is a head for each task label.

    Raises:
        UserError: If the name is unknown (lists those known), or the network cannot take such inputs.
    """
    size = re.fullmatch(r"mlp-([1-9]\d*)x([1-9]\d*)", name)
    if name not in MODELS and size:
        depth, width = (int(number) if len(number) < 9 else MOST_WEIGHTS for number in size.groups())
        if depth * width * max(width, math.prod(input_shape)) > MOST_WEIGHTS:
            raise UserError(f"{shown(name)} has more than {MOST_WEIGHTS:,} weights")
        return mlp((width,) * depth, num_classes, tuple(input_shape), task_labels)
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name](num_classes, tuple(input_shape), task_labels)


class MultiHeadNetwork(MultiTaskModule):
    """A trunk that all tasks share, and a linear head for each task label.

    Args:
        trunk: Inputs to features.
        features: Width of the features.
        num_classes: Width of a head.
    """

    def __init__(self, trunk: nn.Module, features: int, num_classes: int):
        super().__init__()
        self.trunk = trunk
        self.head = MultiHeadClassifier(features, num_classes)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        """Compute the output of each sample by the head of its task label."""
        return self.head(self.trunk(x), task_labels)


def with_head(trunk: nn.Module, features: int, num_classes: int, task_labels: bool) -> nn.Module:
    """Put a linear head on a trunk, or one for each task label; arguments as in `MultiHeadNetwork`."""
    if task_labels:
        return MultiHeadNetwork(trunk, features, num_classes)
    return nn.Sequential(OrderedDict(trunk=trunk, head=nn.Linear(features, num_classes)))


def mlp(widths: Sequence[int], num_classes: int, input_shape: tuple[int, ...], task_labels: bool) -> nn.Module:
    """Hidden layers of ReLU units, of these widths."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    features = math.prod(input_shape)
    _add_linear(layers, features, widths)
    return with_head(nn.Sequential(layers), widths[-1], num_classes, task_labels)


def _add_linear(layers: OrderedDict[str, nn.Module], features: int, widths: Sequence[int], first: int = 1) -> None:
    for number, width in enumerate(widths, start=first):
        layers[f"linear{number}"] = nn.Linear(features, width)
        layers[f"relu{number}"] = nn.ReLU()
        features = width


def pairs_conv(num_classes: int, input_shape: tuple[int, ...], task_labels: bool) -> nn.Module:
    """Three convolutions of 16, 32 and 32 channels, stride 2, and two linear layers of 128; ReLU, no normalisation."""
    if len(input_shape) != 3 or min(input_shape[1:]) < 17:
        raise UserError(f"pairs-conv needs images of at least 17x17 pixels, not inputs of shape {input_shape}")
    channels, *size = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (width, kernel) in enumerate(((16, 5), (32, 3), (32, 3)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, width, kernel, stride=2)
        layers[f"relu{number}"] = nn.ReLU()
        channels, size = width, [(side - kernel) // 2 + 1 for side in size]
    layers["flatten"] = nn.Flatten()
    features = channels * math.prod(size)
    _add_linear(layers, features, (128, 128), first=4)
    return with_head(nn.Sequential(layers), 128, num_classes, task_labels)


def l2_init_conv(num_classes: int, input_shape: tuple[int, ...], task_labels: bool) -> nn.Module:
    """Two convolutions of 16 channels, 5x5, each with max pooling by 2, and two linear layers of 100; ReLU.

    Source:
        Kumar et al. 2023 (L2 Init), with the two linear layers of the authors' code.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 16:
        raise UserError(f"l2-init-conv needs images of at least 16x16 pixels, not inputs of shape {input_shape}")
    channels, *size = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in (1, 2):
        layers[f"conv{number}"] = nn.Conv2d(channels, 16, 5)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        channels, size = 16, [(side - 4) // 2 for side in size]
    layers["flatten"] = nn.Flatten()
    _add_linear(layers, channels * math.prod(size), (100, 100), first=3)
    return with_head(nn.Sequential(layers), 100, num_classes, task_labels)


def slim_resnet18(num_classes: int, input_shape: tuple[int, ...], task_labels: bool) -> nn.Module:
    """ResNet-18 of 20 channels, as Avalanche's (Lopez-Paz & Ranzato 2017), or its variant of many heads."""
    if len(input_shape) != 3 or input_shape[0] != 3 or input_shape[1] != input_shape[2] or input_shape[1] % 32:
        raise UserError(f"slim-resnet18 needs inputs of shape (3, 32, 32) or (3, 64, 64), …, not {input_shape}")
    kind = MultiHeadSlimResNet18 if task_labels else SlimResNet18
    return kind(num_classes, size=input_shape[1])


register_model("mlp-3x128", partial(mlp, (128, 128, 128)))
register_model("pairs-conv", pairs_conv)
register_model("slim-resnet18", slim_resnet18)
register_model("mlp-2x100", partial(mlp, (100, 100)))
register_model("l2-init-conv", l2_init_conv)
