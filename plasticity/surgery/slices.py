"""Some rows or input columns of a tensor, by their numbers on its device; what they hold is changed without a sync."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slices:
    """Rows of a parameter, or input columns of a weight, and of whatever has its shape, as optimizer state.

    Attributes:
        index: Numbers along the first dimension; of columns, numbers of group and column, see `columns`.
        groups: None for rows; for columns, how many groups the layer has, 1 for a Linear.
        chosen: (n,) bool, which of them are meant; None: all. The others are written back as they are, so that a
            number of rows known to the host can hold a number of changes that only the device knows.
    """

    index: tuple[Tensor, ...]
    groups: int | None = None
    chosen: Tensor | None = None

    @classmethod
    def rows(cls, rows: Tensor, chosen: Tensor | None = None) -> Slices:
        """Name rows by number, (n,)."""
        return cls((rows,), None, chosen)

    @classmethod
    def columns(cls, columns: Tensor, width: int, groups: int = 1, chosen: Tensor | None = None) -> Slices:
        """Name input columns, (n,), counted over all groups of a layer whose weight has `width` columns."""
        return cls((columns // width, columns % width), groups, chosen)

    def fill(self, tensor: Tensor, value: Tensor | float) -> None:
        """Put a value, or one for each slice, into a tensor.

        Args:
            tensor: What to change, in place.
            value: A number, a 0-dim tensor, or (n, ...) a tensor of the shape that `read` returns.
        """
        view = self._view(tensor)
        if self.chosen is None:
            view[self.index] = value
        else:
            held = view[self.index]
            marked = self.chosen.view(-1, *[1] * (held.dim() - 1))
            view[self.index] = torch.where(marked, value, held)

    def read(self, tensor: Tensor) -> Tensor:
        """Return a copy of what a tensor holds there: (n, ...) for rows, (n, rows of a group, ...) for columns."""
        return self._view(tensor)[self.index]

    def _view(self, tensor: Tensor) -> Tensor:
        return tensor if self.groups is None else tensor.unflatten(0, (self.groups, -1)).transpose(1, 2)
