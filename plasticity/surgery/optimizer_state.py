"""Optimizer state of single weights: what a weight's momentum and second moment become when the weight is replaced."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.surgery.slices import Slices

Moments = Literal["young", "mean", "zero", "keep"]
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta")
"""State entries that grow with the square of the gradient, by the names PyTorch's optimizers give them."""
ENOUGH, LEAST_ROWS = 2**16, 64
"""How many entries, and how many rows, a mean is taken over at least."""
_NO_MOMENTS = ("step_size", "ax")  # Rprop's step sizes and ASGD's averaged weights


def clean_state(
    optimizer: Optimizer | None,
    parameter: Tensor,
    where: Tensor | Slices,
    moments: Moments = "young",
    share: float = 0.01,
) -> None:
    """Clean the optimizer state of some entries of a parameter; the state of all others is left alone.

    First moments and momentum become 0. Adam corrects second moments for their age, but PyTorch keeps one age, the step
    count, for a whole tensor; resetting it would starve the other entries, so it stays. What the second moments become
    decides over the first hundreds of steps, compared here with an Adam that keeps an age for every entry, on
    classification and regression with an MLP:

    - "zero": steps are up to six times too large, and more of the reset units die again.
    - "mean", the mean over the entries that are kept: steps are too small, of incoming weights up to a hundred times,
      since gradients begin at 0 there.
    - "young", `share` of that mean: steps are small for about ten steps, then right within a factor of about two.

    In parameters of 2^17 entries and more the mean is that of evenly spaced rows: 2^16 entries and 64 rows at least.

    A missing or partial state is left as it is.

    Args:
        optimizer: The optimizer, or None for nothing to clean.
        parameter: The parameter, as the optimizer holds it.
        where: Boolean tensor of the parameter's shape, True for the entries to clean; or rows or columns of it.
        moments: What becomes of second moments; "keep" leaves the whole state as it is.
        share: For "young". The default suits entries whose gradient grows from 0, as that of the incoming weights of a
            unit whose outgoing weights are 0; 0.1 suits those whose gradient is at once as large as others'.

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
    factor = {"young": share, "mean": 1.0, "zero": 0.0}[moments]
    with torch.no_grad():
        for name, entry in state.items():
            if not isinstance(entry, Tensor) or entry.shape != parameter.shape or entry.dim() == 0:
                continue
            if name in _NO_MOMENTS:
                continue
            _fill(entry, where, 0.0)
            if name in SECOND_MOMENTS and factor > 0:
                _fill(entry, where, (factor * _mean_of_others(entry).nan_to_num(0.0)).to(entry.dtype))


def forget_state(optimizer: Optimizer, spared: frozenset[Tensor] = frozenset()) -> None:
    """Make an optimizer as new.

    Args:
        optimizer: The optimizer.
        spared: Parameters whose state stays.
    """
    if not spared:
        optimizer.state.clear()
    for parameter in [each for each in optimizer.state if each not in spared]:
        del optimizer.state[parameter]


def _mean_of_others(entry: Tensor) -> Tensor:
    """Return the mean over the entries that are not 0: those just cleaned are, and removed weights, without a gradient.

    A large entry is looked at in evenly spaced rows: to read all of it for one new unit takes longer than all else.
    """
    rows = entry[:: max(1, min(entry.numel() // ENOUGH, len(entry) // LEAST_ROWS))]
    wide = torch.promote_types(entry.dtype, torch.float32)
    return rows.sum(dtype=wide) / torch.count_nonzero(rows).clamp(min=1)


def _fill(entry: Tensor, where: Tensor | Slices, value: Tensor | float) -> None:
    if isinstance(where, Slices):
        where.fill(entry, value)
    else:
        entry.copy_(torch.where(where, value, entry))
