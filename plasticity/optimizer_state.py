"""Optimizer state of single weights: what a weight's momentum and second moment become when the weight is replaced."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from plasticity.errors import UserError

Moments = Literal["mean", "zero", "keep"]
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta")
"""State entries that grow with the square of the gradient, by the names PyTorch's optimizers give them."""


def clean_state(optimizer: Optimizer | None, parameter: Tensor, where: Tensor, moments: Moments = "mean") -> None:
    """Clean the optimizer state of some entries of a parameter; the state of all others is left alone.

    First moments and momentum become 0. Second moments become 0 with "zero": at a large step count, which PyTorch
    keeps once for a whole tensor, the entries' first steps are then up to 6.5 times too large. With "mean" they become
    the mean over the entries that are kept: no step is too large, and steps are small while gradients are. The step
    count stays: resetting it would starve the other entries. A missing or partial state is left as it is.

    Args:
        optimizer: The optimizer, or None for nothing to clean.
        parameter: The parameter, as the optimizer holds it.
        where: Boolean tensor of the parameter's shape, True for the entries to clean.
        moments: What becomes of second moments; "keep" leaves the whole state as it is.

    Raises:
        UserError: If `moments` is unknown.
    """
    if moments not in get_args(Moments):
        raise UserError(f"unknown moments {moments!r}; there are: {', '.join(get_args(Moments))}")
    if optimizer is None or moments == "keep":
        return
    state = optimizer.state.get(parameter)
    if not state:
        return
    with torch.no_grad():
        for name, entry in state.items():
            if not isinstance(entry, Tensor) or entry.shape != parameter.shape or entry.dim() == 0:
                continue
            if name in SECOND_MOMENTS and moments == "mean":
                kept = (~where).sum()
                mean = torch.where(where, 0, entry).sum() / kept.clamp(min=1)
                entry.copy_(torch.where(where, mean.to(entry.dtype), entry))
            else:
                entry.masked_fill_(where, 0)
