"""All sums over the activations of a call in one pass over them, on a CPU, by loops that Numba compiles."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

RUN = 40
"""A unit that has as many activations next to each other in memory is added up before the next one is."""

THREADS = 4
"""PyTorch's own functions, which make a pass for each sum, are quicker on more threads than these,"""

ALONE = 2**17
"""if there are more activations than these."""

_KINDS = {torch.float32: np.float32, torch.float64: np.float64}

HALF = (torch.bfloat16, torch.float16)
"""Data types that a CPU turns into float32 first, which is exact."""


class FusedSums:
    """Sums over calls that are alike: float64, counts int64.

    Args:
        h: Activations of a call, `fusible`.
        others: The dimensions to sum over: all but one at most.
        signed: Whether there are negative ones.
        otherwise: Called with activations of another kind.

    Attributes:
        calls: How many there were.
    """

    def __init__(self, h: Tensor, others: tuple[int, ...], signed: bool, otherwise: Callable[[Tensor], None]) -> None:
        self.calls, self._otherwise = 0, otherwise
        self._class, self._shape, self._strides, self._dtype = type(h), h.shape, h.stride(), h.dtype
        self._half = h.dtype in HALF
        self._kind = np.empty(0, np.float32 if self._half else _KINDS[h.dtype])
        places = _in_memory(h)
        at = next((place for place, dim in enumerate(places) if dim not in others), len(places))
        sizes = [h.shape[dim] for dim in places]
        self._samples, units, self._positions = map(math.prod, (sizes[:at], sizes[at : at + 1], sizes[at + 1 :]))
        loops = _loops()
        assert loops is not None
        rows, runs = loops
        self._add = runs if self._positions >= RUN else rows
        self._sums = (units, 1 if self._add is runs else self._positions)
        self._fired = np.zeros(math.prod(self._sums), np.int64)
        self._total = np.zeros(self._fired.size)
        self._magnitude = np.zeros(self._fired.size if signed else 0)

    def add(self, h: Tensor) -> None:
        """Add the activations of a call; if they are unlike those that the sums were made for, hand them on."""
        if not (
            type(h) is self._class
            and h.shape == self._shape
            and h.dtype is self._dtype
            and h.stride() == self._strides
            and h.is_cpu
        ):
            self._otherwise(h)
            return
        if self._half:
            h = h.detach().to(torch.float32)  # the strides stay
        try:
            address = h.data_ptr()
        except RuntimeError:  # it only stands for a tensor, within torch.func
            self._otherwise(h)
            return
        self.calls += 1
        self._add(address, self._kind, self._samples, self._positions, self._fired, self._total, self._magnitude)

    def clear(self) -> None:
        """Forget all calls."""
        for part in (self._fired, self._total, self._magnitude):
            part.fill(0)
        self.calls = 0

    def sums(self) -> list[Tensor]:
        """Return the sums over all calls."""
        if not self.calls:
            return []
        parts = [self._fired, self._total, self._magnitude][: 3 if self._magnitude.size else 2]
        return [torch.from_numpy(part.reshape(self._sums).sum(1)) for part in parts]


def fusible(h: Tensor) -> bool:
    """Return whether such activations can be added up by `FusedSums`, and quicker so than by PyTorch's functions."""
    return (
        type(h) in (Tensor, nn.Parameter)
        and h.is_cpu
        and h.layout is torch.strided
        and (h.dtype in _KINDS or h.dtype in HALF)
        and h.numel() > 0
        and (h.numel() <= ALONE or torch.get_num_threads() <= THREADS)
        and h.permute(_in_memory(h)).is_contiguous()
        and not h.is_neg()
        and _stored(h)
        and _loops() is not None
    )


def _in_memory(h: Tensor) -> list[int]:
    """Return the dimensions in the order in which they lie in memory, the outermost first."""
    return sorted(range(h.dim()), key=lambda dim: -h.stride()[dim])


def _stored(h: Tensor) -> bool:
    try:
        h.data_ptr()
    except RuntimeError:
        return False
    return True


@cache
def _loops() -> tuple[Callable[..., None], Callable[..., None]] | None:
    """Return the compiled loops; None, and a warning, where Numba does not run."""
    try:
        from plasticity.watching.fused_kernels import add_rows, add_runs
    except ImportError as error:  # as that of a Numba that does not know this NumPy
        what = "watching units on a CPU takes several times as long without it"
        warnings.warn(f"Numba cannot be imported ({error}): {what}", stacklevel=2)
        return None
    return add_rows, add_runs
