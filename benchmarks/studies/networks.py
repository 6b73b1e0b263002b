"""A network with normalisers, small enough for a CPU: Demon pruning acts on their scales."""

import math
from collections import OrderedDict

from torch import nn

from benchmarks.models import register_model, with_head
from plasticity.errors import UserError


def pairs_conv_bn(num_classes: int, input_shape: tuple[int, ...], task_labels: bool) -> nn.Module:
    """`pairs-conv` with batch normalisation: before every activation of its convolutions and linear layers.

    Convolutions of 16, 32 and 32 channels, stride 2, and two linear layers of 128; ReLU.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 17:
        raise UserError(f"pairs-conv-bn needs images of at least 17x17 pixels, not inputs of shape {input_shape}")
    channels, *size = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (width, kernel) in enumerate(((16, 5), (32, 3), (32, 3)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, width, kernel, stride=2, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm2d(width)
        layers[f"relu{number}"] = nn.ReLU()
        channels, size = width, [(side - kernel) // 2 + 1 for side in size]
    layers["flatten"] = nn.Flatten()
    features = channels * math.prod(size)
    for number in (4, 5):
        layers[f"linear{number}"] = nn.Linear(features, 128, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm1d(128)
        layers[f"relu{number}"] = nn.ReLU()
        features = 128
    return with_head(nn.Sequential(layers), 128, num_classes, task_labels)


register_model("pairs-conv-bn", pairs_conv_bn)
