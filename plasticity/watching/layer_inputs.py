"""What layers were called with: running sums of the inputs of some, and rows of those of the last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plasticity.watching.unit_statistics import plainly, sum_type


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
            others = [d for d in range(x.dim()) if d != x.dim() + dim]
            total = x.sum(others, dtype=sum_type(x.device)) if others else x.to(sum_type(x.device), copy=True)
            least = x.amin() if x.numel() else x.new_zeros(())
            self.total = total if self.total is None else self.total + total
            self.least = least if self.least is None else torch.minimum(self.least, least)
            self.count += x.numel() // x.shape[dim]


class FeatureRows:
    """The first rows of a representation, averaged over the positions of a convolution.

    Args:
        limit: How many to keep, at most.

    Attributes:
        room: How many more will be kept.
    """

    def __init__(self, limit: int) -> None:
        self.room = limit
        self._rows: list[Tensor] = []

    def add(self, x: Tensor, dim: int | None) -> None:
        """Keep rows while there is room; without a dimension of features there are none."""
        if self.room <= 0 or dim is None:
            return
        rows = x.detach()
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                self._add(rows, dim)
        else:
            self._add(rows, dim)

    def _add(self, rows: Tensor, dim: int) -> None:
        if dim != -1:
            rows = rows.flatten(rows.dim() + dim + 1).mean(-1)
        if rows.dim() != 2:
            rows = rows.reshape(-1, rows.shape[-1])
        if len(rows) > self.room:
            rows = rows[: self.room]
        self._rows.append(rows.clone())
        self.room -= len(rows)

    def rows(self) -> Tensor | None:
        """Return what was kept, (rows, width), or None if nothing was."""
        return torch.cat(self._rows) if self._rows else None


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return what a Linear or Conv layer was called with."""
    x: Tensor = args[0] if args else kwargs["input"]
    return x


def unit_dim(module: nn.Module) -> int:
    """Return the negative dimension of a layer's input and output that holds features or channels."""
    return -1 if isinstance(module, nn.Linear) else -1 - len(getattr(module, "kernel_size", ()))
