"""Running statistics of the units of one group: counts in int64, sums over calls in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from plasticity.errors import UserError
from plasticity.groups import UnitGroup
from plasticity.tracing.functions import NON_NEGATIVE
from plasticity.watching.call_sums import CallSums, add_up, call_sums, sum_type


@dataclass(frozen=True)
class UnitStatistics:
    """What was seen of the units of one group; one observation is one unit at one sample and position.

    Attributes:
        fired: (size,) int64, observations with an activation above 0; a count, not a rate.
        count: Observations of each unit: samples x positions.
        mean: (size,) float64, mean activation; NaN where nothing was seen.
        mean_abs: (size,) float64, mean magnitude of the activation; NaN where nothing was seen.
    """

    fired: Tensor
    count: int
    mean: Tensor
    mean_abs: Tensor


@contextmanager
def plainly() -> Iterator[None]:
    """Compute without gradients, and so that the result can be added to in any mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Sums:
    """Running sums over all dimensions but the one that holds the units.

    Args:
        group: The units.
        dim: The negative dimension of the activations that holds them; None if they are one unit.

    Attributes:
        add: Adds the activations of one call.
    """

    def __init__(self, group: UnitGroup, dim: int | None) -> None:
        self.group = group
        self.dim = dim
        self.signed = group.site is None or group.activation not in NON_NEGATIVE
        self.unit_of = group.site.unit_of if group.site is not None else None
        self.add: Callable[[Tensor], None] = self._begin
        self._calls: CallSums | None = None  # of calls such as the last
        self._each = 0  # observations of a unit in one of them
        self._retired: list[Tensor] = []  # what those of before came to, and how many observations they had:
        self._count = 0
        self._others: tuple[int, ...] = ()  # dimensions to sum over, for activations of this shape:
        self._shape: torch.Size | None = None

    @property
    def count(self) -> int:
        """Observations of each unit: samples x positions."""
        return self._count + (self._calls.calls * self._each if self._calls is not None else 0)

    def clear(self) -> None:
        """Forget what was added."""
        self._count, self._retired = 0, []
        if self._calls is not None:
            self._calls.clear()

    def add_sums(self, sums: list[Tensor], observations: int) -> None:
        """Add sums over calls that were made elsewhere, as `CallSums.sums` returns them.

        Args:
            sums: Of each activation of a sample.
            observations: Of each unit.
        """
        with plainly():
            self._retired = _together(self._retired, [self._by_unit(each) for each in sums])
        self._count += observations

    def _begin(self, activations: Tensor) -> None:
        """Add the activations of a call, the first such."""
        self._fit(activations.shape)
        self._retired, self._count = self._totals(), self.count
        self._each = activations.numel() // self.group.size
        self._calls = call_sums(activations, self._others, self.signed, otherwise=self._begin)
        self.add = self._calls.add  # without a way round: it is called at every activation of every pass
        self.add(activations)

    def _totals(self) -> list[Tensor]:
        """Return the sums over all calls, unit by unit: what of, `CallSums.sums` says."""
        if self._calls is None:
            return self._retired
        with plainly():
            return _together(self._retired, [self._by_unit(sums) for sums in self._calls.sums()])

    def per_unit(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Add up values of the activations' shape.

        Args:
            values: One for each activation.
            dtype: Of the sums.

        Returns:
            (size,).
        """
        if values.shape != self._shape:
            self._fit(values.shape)
        return self._by_unit(add_up(values, self._others, dtype))

    def _by_unit(self, sums: Tensor) -> Tensor:
        """Put sums along the dimension that holds the units together, unit by unit."""
        if self.unit_of is not None:
            self.unit_of = self.unit_of.to(sums.device, non_blocking=True)
            return sums.new_zeros(self.group.size).index_add_(0, self.unit_of, sums)
        return sums if sums.shape == (self.group.size,) else sums.view(self.group.size, -1).sum(1)

    def _fit(self, shape: torch.Size) -> None:
        """Note which dimensions of activations to sum over, if they can be those of the group."""
        dim = None if self.dim is None else len(shape) + self.dim
        length = 1 if dim is None else shape[dim] if dim >= 0 else 0
        expected = self.group.size if self.unit_of is None else len(self.unit_of)
        if length == 0 or length % expected or (self.unit_of is not None and length != expected):
            raise UserError(
                f"group '{self.group.name}' of {self.group.size} units sees activations of shape "
                f"{tuple(shape)}; find the units again after the model or its input changes"
            )
        self._others = tuple(d for d in range(len(shape)) if d != dim)
        self._shape = shape

    def statistics(self, device: torch.device) -> UnitStatistics:
        """Return what was added so far; where nothing was, on the given device."""
        totals = self._totals()
        if not totals:
            size = self.group.size
            nothing = torch.full((size,), float("nan"), dtype=sum_type(device), device=device)
            return UnitStatistics(torch.zeros(size, dtype=torch.int64, device=device), 0, nothing, nothing.clone())
        fired, *sums = totals
        return UnitStatistics(fired.clone(), self.count, sums[0] / self.count, sums[-1] / self.count)


def _together(before: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    """Add sums up, of which there may be none on either side."""
    if not before or not new:
        return before or new
    return [one.to(other.device) + other for one, other in zip(before, new, strict=True)]
