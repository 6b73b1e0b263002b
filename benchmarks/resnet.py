"""Slim ResNet-18, for one head and for many.

Weights, names and outputs are those of Avalanche's `SlimResNet18` and `MTSlimResNet18` (Lopez-Paz & Ranzato 2017).
Activations and pooling are modules here and not functions, so that they can be exchanged.
"""

from collections.abc import Sequence

from avalanche.models import MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from plasticity.architecture import CReLU, register_crelu
from plasticity.architecture.crelu import Widths

WIDTHS = (20, 40, 80, 160)


class FirstHalf(nn.Module):
    """Passes the positive halves of CReLU on, which are what ReLU would have given."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : x.shape[1] // 2]


class Block(nn.Module):
    """Two convolutions and a shortcut.

    Args:
        inputs: Channels coming in.
        channels: Channels of the two convolutions.
        stride: Of the first one.
        crelu: Whether activations are CReLU, of which every one gives twice as many channels as it gets.
    """

    def __init__(self, inputs: int, channels: int, stride: int, crelu: bool = False):
        super().__init__()
        outputs = 2 if crelu else 1
        self.conv1 = nn.Conv2d(outputs * inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = CReLU(-3) if crelu else nn.ReLU()
        self.conv2 = nn.Conv2d(outputs * channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = FirstHalf() if crelu else nn.Sequential()
        if stride != 1 or inputs != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(outputs * inputs, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.relu2 = CReLU(-3) if crelu else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


def _add_layers(model: nn.Module, widths: Sequence[int], crelu: bool, size: int) -> int:
    """Add all but the head; returns the number of features that it gets."""
    model.widths = tuple(widths)
    model.size = size
    model.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(widths[0])
    model.relu = CReLU(-3) if crelu else nn.ReLU()
    inputs = widths[0]
    for stage, channels in enumerate(widths, start=1):
        first = Block(inputs, channels, 1 if stage == 1 else 2, crelu)
        model.add_module(f"layer{stage}", nn.Sequential(first, Block(channels, channels, 1, crelu)))
        inputs = channels
    model.pool = nn.Sequential(nn.AvgPool2d(size // 8), nn.Flatten())
    return 2 * inputs if crelu else inputs


def _features(model: nn.Module, x: Tensor) -> Tensor:
    out = model.relu(model.bn1(model.conv1(x)))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        out = stage(out)
    return model.pool(out)


class SlimResNet18(nn.Module):
    """With one head.

    Args:
        num_classes: Width of the head.
        widths: Channels of the four stages.
        crelu: Whether activations are CReLU; a shortcut without weights then passes on what ReLU would.
        size: Height and width of the images, a multiple of 32.
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = WIDTHS, crelu: bool = False, size: int = 32):
        super().__init__()
        self.linear = nn.Linear(_add_layers(self, widths, crelu, size), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(_features(self, x))


class MultiHeadSlimResNet18(MultiTaskModule):
    """With a head for each task label; arguments as in `SlimResNet18`."""

    def __init__(self, num_classes: int, widths: Sequence[int] = WIDTHS, crelu: bool = False, size: int = 32):
        super().__init__()
        self.linear = MultiHeadClassifier(_add_layers(self, widths, crelu, size), num_classes)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        return self.linear(_features(self, x), task_labels)


@register_crelu(SlimResNet18)
def _with_crelu(network: SlimResNet18, widths: Widths) -> SlimResNet18:
    return SlimResNet18(network.linear.out_features, widths(network.widths), True, network.size)


@register_crelu(MultiHeadSlimResNet18)
def _with_crelu_and_heads(network: MultiHeadSlimResNet18, widths: Widths) -> MultiHeadSlimResNet18:
    return MultiHeadSlimResNet18(network.linear.starting_out_features, widths(network.widths), True, network.size)
