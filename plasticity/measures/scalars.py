"""The type in which measures compute, and how single numbers of several devices come together."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def working_type(device: torch.device) -> torch.dtype:
    """Return the widest float type of a device.

    Args:
        device: Where a measure is computed.

    Returns:
        float64, or float32 on MPS, which has no float64.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def stack(scalars: Iterable[Tensor]) -> Tensor:
    """Put numbers into one tensor, on the device of the first.

    Args:
        scalars: 0-dim tensors, at least one, on any devices.

    Returns:
        (n,) tensor of them in their order.
    """
    scalars = list(scalars)
    return torch.stack([each.to(scalars[0].device) for each in scalars])
