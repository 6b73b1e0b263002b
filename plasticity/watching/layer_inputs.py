"""What layers were called with: running sums of the inputs of some, and rows of those of the last."""

from __future__ import annotations

from ctypes import memmove
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.watching.call_sums import add_up, sum_type
from plasticity.watching.unit_statistics import plainly

FEW = 256
"""There is memory for so many rows of a representation from the start."""


class InputSums:
    """The sum and the least of all inputs of a Linear or Conv layer, running.

    Attributes:
        total: (input features or channels,) float64; None before the first call.
        count: Samples x positions.
        least: 0-dim.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0
        self.least: Tensor | None = None

    def add(self, x: Tensor, dim: int) -> None:
        """Add the input of one call, whose features lie along a negative dimension."""
        with plainly():
            x = x.detach()
            others = tuple(d for d in range(x.dim()) if d != x.dim() + dim)
            total = add_up(x, others, sum_type(x.device))
            least = x.amin() if x.numel() else x.new_zeros(())
            self.total = total if self.total is None else self.total + total
            self.least = least if self.least is None else torch.minimum(self.least, least)
            self.count += x.numel() // x.shape[dim]


class FeatureRows:
    """The first rows of a representation, averaged over the positions of a convolution.

    They are copied into memory that is there already: many small tensors that stay would scatter what a step allocates.

    Args:
        limit: How many to keep, at most.

    Attributes:
        room: How many more will be kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self.room = limit
        self._kept: Tensor | None = None  # with as many rows as there is memory for so far
        self._alike: torch.Size | None = None  # the shape of what can be copied as it lies in memory

    def clear(self) -> None:
        """Forget what was kept."""
        self.room = self._limit

    def add(self, x: Tensor, dim: int | None) -> None:
        """Keep rows while there is room; without a dimension of features there are none."""
        if self.room <= 0 or dim is None:
            return
        if x.shape == self._alike and dim == -1 and self._copied(x):
            return
        with plainly():
            rows = as_rows(x.detach(), dim)[: self.room]
            self._make_room(rows)
            if self._kept is not None:
                first = self._limit - self.room
                self._kept[first : first + len(rows)].copy_(rows)
        self.room -= len(rows)
        self._alike = x.shape if x.dim() == 2 else None

    def _copied(self, x: Tensor) -> bool:
        """Copy rows as they lie in memory, if they can be; this takes a fifth of the time."""
        kept, count = self._kept, x.shape[0]
        if kept is None or count > min(self.room, kept.shape[0] + self.room - self._limit):
            return False
        if not (type(x) is Tensor and x.is_cpu and kept.is_cpu and x.dtype is kept.dtype and x.is_contiguous()):
            return False
        try:
            source = x.data_ptr()
        except RuntimeError:  # it only stands for a tensor, within torch.func
            return False
        row = kept.stride(0) * kept.itemsize
        memmove(kept.data_ptr() + (self._limit - self.room) * row, source, count * row)
        self.room -= count
        return True

    def _make_room(self, rows: Tensor) -> None:
        """See to it that there is memory for such rows behind those that are kept."""
        kept, first = self._kept, self._limit - self.room
        like = (rows.shape[1], rows.dtype, rows.device)
        if kept is not None and (kept.shape[1], kept.dtype, kept.device) == like and first + len(rows) <= len(kept):
            return
        size = min(self._limit, max(first + len(rows), 2 * first, FEW))
        self._kept = rows.new_empty(size, rows.shape[1])
        if kept is not None:
            self._kept[:first].copy_(kept[:first])

    def rows(self) -> Tensor | None:
        """Return what was kept, (rows, width), or None if nothing was."""
        seen = self._limit - self.room
        return self._kept[:seen].clone() if self._kept is not None and seen else None


def as_rows(x: Tensor, dim: int) -> Tensor:
    """Return a representation as rows, averaged over what is behind the negative dimension of its features."""
    if dim != -1:
        x = x.flatten(x.dim() + dim + 1).mean(-1)
    return x.reshape(-1, x.shape[-1])


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return what a Linear or Conv layer was called with."""
    x: Tensor = args[0] if args else kwargs["input"]
    return x


def unit_dim(module: nn.Module) -> int:
    """Return the negative dimension of a layer's input and output that holds features or channels."""
    return -1 if isinstance(module, nn.Linear) else -1 - len(getattr(module, "kernel_size", ()))
