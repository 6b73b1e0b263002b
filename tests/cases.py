"""Models, inputs and seeds that tests share.

A case is a model, one batch to find its units with, more batches to check it with, and what is to be found in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

SEED = 1


@dataclass(frozen=True)
class Case:
    """A model and what is known about it.

    Attributes:
        name: For the test report.
        build: Makes the model.
        batches: Makes inputs, a tuple each; the first is the example that units are found with.
        private: Names of the private groups, separated by spaces; None where they are not listed.
        watched: Names of the other groups; None where they are not listed.
        alone: Whether a slow test can afford to check each group by itself.
        training: Modes in which its output is a function of its inputs and the random seed.
    """

    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[], list[tuple[Any, ...]]]
    private: str | None = None
    watched: str | None = None
    alone: bool = True
    training: tuple[bool, ...] = (False, True)

    def model(self, seed: int = SEED) -> nn.Module:
        """Build the model from a seed."""
        torch.manual_seed(seed)
        return self.build()

    def inputs(self, seed: int = SEED) -> list[tuple[Any, ...]]:
        """Make the batches from a seed."""
        torch.manual_seed(seed)
        return self.batches()


class Net(nn.Module):
    """Named layers and a function of the model and its inputs."""

    def __init__(self, forward: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def randn(*shape: int, batches: int = 1) -> Callable[[], list[tuple[Any, ...]]]:
    """Make batches of one normal tensor each."""
    return lambda: [(torch.randn(shape),) for _ in range(batches)]


def vectors(
    forward: Callable[..., Any],
    *,
    name: str,
    private: str,
    watched: str = "",
    shape: tuple[int, ...] = (4, 6),
    **layers: Any,
) -> Case:
    """Make a case of a `Net`: its layers are given as (inputs, outputs) of a Linear, or as functions that make one."""

    def build() -> nn.Module:
        return Net(forward, **{k: nn.Linear(*v) if isinstance(v, tuple) else v() for k, v in layers.items()})

    return made(build, name=name, private=private, watched=watched, shape=shape)


def made(
    build: Callable[[], nn.Module], *, name: str, private: str, watched: str = "", shape: tuple[int, ...] = (4, 6)
) -> Case:
    """Make a case of any model that takes one normal tensor."""
    return Case(name, build, randn(*shape, batches=2), private, watched)


# --- Avalanche -------------------------------------------------------------------------------------------------------


def experience(classes: list[int], task: int) -> Any:
    """What Avalanche's modules look at when they adapt to an experience."""
    return SimpleNamespace(classes_in_this_experience=classes, task_labels=[task])


def adapted(model: nn.Module, tasks: int = 3, classes: int = 4) -> nn.Module:
    """Grow the heads of a model for a few tasks of two classes each."""
    from avalanche.models.dynamic_modules import avalanche_model_adaptation

    for task in range(tasks):
        avalanche_model_adaptation(model, experience([(2 * task) % classes, (2 * task + 1) % classes], task))
    return model


def _avalanche(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    import avalanche.models

    return adapted(getattr(avalanche.models, name)(*args, **kwargs))


def _as_multitask() -> nn.Module:
    from avalanche.models import SimpleMLP, as_multitask

    return adapted(as_multitask(SimpleMLP(num_classes=4, input_size=20, hidden_size=16, hidden_layers=2), "classifier"))


def _incremental() -> nn.Module:
    from avalanche.models import IncrementalClassifier

    return adapted(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), IncrementalClassifier(6 * 36))
    )


def _multi_head() -> nn.Module:
    from avalanche.models import MultiHeadClassifier

    head = MultiHeadClassifier(12, masking=True)
    model = Net(lambda m, x, t: m.head(torch.tanh(m.body(x)), t), body=nn.Linear(5, 12), head=head)
    return adapted(model)


def labelled(*shape: int, tasks: int = 3) -> Callable[[], list[tuple[Any, ...]]]:
    """Make a batch of task 0 to find units with, one of each other task, one of all tasks, and one of a plain label."""

    def make() -> list[tuple[Any, ...]]:
        found = [(torch.randn(shape), torch.full(shape[:1], task)) for task in range(tasks)]
        return [*found, (torch.randn(shape), torch.arange(shape[0]) % tasks), (torch.randn(shape), tasks - 1)]

    return make


_SLIM_PRIVATE = " ".join(f"layer{i}.{j}.conv1" for i in (1, 2, 3, 4) for j in (0, 1))
_SLIM_WATCHED = "conv1 " + " ".join(f"layer{i}.{j}.conv2" for i in (1, 2, 3, 4) for j in (0, 1))

AVALANCHE = [
    Case(
        "SimpleMLP",
        lambda: _avalanche("SimpleMLP", num_classes=4, input_size=20, hidden_size=16, hidden_layers=3),
        randn(4, 20, batches=2),
        private="features.0 features.3.0 features.4.0",
        watched="",
    ),
    Case(
        "SimpleCNN",
        lambda: _avalanche("SimpleCNN", num_classes=4),
        randn(2, 3, 32, 32),
        private="features.0 features.2 features.6 features.8 features.12",
        watched="",
    ),
    Case(
        "SlimResNet18",
        lambda: _avalanche("SlimResNet18", 4, nf=4),
        randn(2, 3, 32, 32),
        private=_SLIM_PRIVATE,
        watched=_SLIM_WATCHED,
    ),
    Case(
        "MTSlimResNet18",
        lambda: _avalanche("MTSlimResNet18", 4, nf=4),
        labelled(3, 3, 32, 32),
        private=_SLIM_PRIVATE,
        watched=_SLIM_WATCHED,
        alone=False,
    ),
    Case(
        "MTSimpleMLP",
        lambda: _avalanche("MTSimpleMLP", input_size=20, hidden_size=16),
        labelled(4, 20),
        private="features.0",
        watched="",
    ),
    Case(
        "MTSimpleCNN",
        lambda: _avalanche("MTSimpleCNN"),
        labelled(3, 3, 32, 32),
        private="features.0 features.2 features.6 features.8 features.12",
        watched="",
    ),
    Case(
        "as_multitask",
        _as_multitask,
        labelled(4, 20),
        private="model.features.0 model.features.3.0",
        watched="",
    ),
    Case("IncrementalClassifier", _incremental, randn(3, 3, 8, 8), private="0", watched=""),
    Case("MultiHeadClassifier", _multi_head, labelled(4, 5), private="body", watched=""),
]


# --- torchvision -----------------------------------------------------------------------------------------------------


def _torchvision(name: str, **kwargs: Any) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(weights=None, num_classes=5, **kwargs)


def _vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=20, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # zero at first, which would hide everything
    return model


def _vgg() -> nn.Module:
    from torchvision.models.vgg import VGG, make_layers

    model = VGG(make_layers([4, "M", 6, "M", 8, 8, "M"], batch_norm=True), num_classes=5, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier[0] = nn.Linear(8 * 4, 24)
    model.classifier[3] = nn.Linear(24, 20)
    model.classifier[6] = nn.Linear(20, 5)
    return model


def _densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=4, block_config=(2, 3), num_init_features=8, bn_size=2, num_classes=5)


def _resnet(block: str, layers: list[int], **kwargs: Any) -> nn.Module:
    from torchvision.models import resnet

    return resnet.ResNet(getattr(resnet, block), layers, num_classes=5, **kwargs)


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    blocks = [CNBlockConfig(8, 12, 1), CNBlockConfig(12, 16, 2), CNBlockConfig(16, None, 1)]
    return ConvNeXt(blocks, layer_scale=0.5, num_classes=5)


# Small members of each family, for the property; the full ones are traced in test_units.py.
TORCHVISION = [
    Case("resnet basic", lambda: _resnet("BasicBlock", [1, 1, 1, 1]), randn(2, 3, 16, 16), alone=False),
    Case("resnet bottleneck", lambda: _resnet("Bottleneck", [1, 1, 1, 1]), randn(2, 3, 16, 16), alone=False),
    Case(
        "resnext",
        lambda: _resnet("Bottleneck", [1, 1, 1, 1], groups=4, width_per_group=8),
        randn(2, 3, 16, 16),
        alone=False,
    ),
    Case(
        "vgg_bn",
        _vgg,
        randn(2, 3, 16, 16),
        private="features.0 features.4 features.8 features.11 classifier.0 classifier.3",
        watched="",
    ),
    Case("densenet", _densenet, randn(2, 3, 32, 32), watched=None),
    Case("convnext", _convnext, randn(2, 3, 32, 32)),
    Case("vit", _vision_transformer, randn(2, 3, 16, 16)),
    Case("mobilenet_v2", lambda: _torchvision("mobilenet_v2", width_mult=0.25), randn(2, 3, 32, 32), alone=False),
    Case("mobilenet_v3", lambda: _torchvision("mobilenet_v3_small", width_mult=0.25), randn(2, 3, 32, 32), alone=False),
    Case("shufflenet", lambda: _torchvision("shufflenet_v2_x0_5"), randn(2, 3, 32, 32), alone=False),
    Case("squeezenet", lambda: _torchvision("squeezenet1_1"), randn(2, 3, 32, 32), alone=False),
    Case("efficientnet", lambda: _torchvision("efficientnet_b0"), randn(2, 3, 32, 32), alone=False, training=(False,)),
    Case(
        "googlenet without auxiliary heads",
        lambda: _torchvision("googlenet", aux_logits=False, init_weights=False),
        randn(2, 3, 32, 32),
        alone=False,
    ),
]
