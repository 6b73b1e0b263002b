"""Networks by name, randomly initialised from PyTorch's global seed.

A network of your own joins by one line; its function gets what `StreamShape` holds:

    register_model("mine", lambda num_classes, input_shape, task_labels: MyNetwork(num_classes))
"""

import difflib
import math
from collections import OrderedDict
from collections.abc import Callable

from avalanche.models import MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from benchmarks.resnet import MultiHeadSlimResNet18, SlimResNet18
from plasticity.errors import UserError

Factory = Callable[[int, tuple[int, ...], bool], nn.Module]
MODELS: dict[str, Factory] = {}


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
        name: A registered name.
        num_classes: Width of a head.
        input_shape: Shape of one sample.
        task_labels: Whether there is a head for each task label.

    Raises:
        UserError: If the name is unknown (lists those known), or the network cannot take such inputs.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"unknown model {name!r}{hint}: known are {', '.join(MODELS)}")
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


def mlp(num_classes: int, input_shape: tuple[int, ...], task_labels: bool) -> nn.Module:
    """Three hidden layers of 128 ReLU units."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = math.prod(input_shape)
    for number in (1, 2, 3):
        layers[f"linear{number}"] = nn.Linear(width, 128)
        layers[f"relu{number}"] = nn.ReLU()
        width = 128
    return with_head(nn.Sequential(layers), width, num_classes, task_labels)


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
    for number in (4, 5):
        layers[f"linear{number}"] = nn.Linear(features, 128)
        layers[f"relu{number}"] = nn.ReLU()
        features = 128
    return with_head(nn.Sequential(layers), features, num_classes, task_labels)


def slim_resnet18(num_classes: int, input_shape: tuple[int, ...], task_labels: bool) -> nn.Module:
    """ResNet-18 of 20 channels, as Avalanche's (Lopez-Paz & Ranzato 2017), or its variant of many heads."""
    if input_shape != (3, 32, 32):
        raise UserError(f"slim-resnet18 needs inputs of shape (3, 32, 32), not {input_shape}")
    return MultiHeadSlimResNet18(num_classes) if task_labels else SlimResNet18(num_classes)


register_model("mlp-3x128", mlp)
register_model("pairs-conv", pairs_conv)
register_model("slim-resnet18", slim_resnet18)
