"""Running statistics of the units of one group: counts in int64, sums in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from plasticity.errors import UserError
from plasticity.groups import UnitGroup
from plasticity.tracing.functions import NON_NEGATIVE

PART = 2**17
"""How many activations a CPU takes at a time: so many stay in its cache until all their sums are made."""

_COUNTED_IN = (torch.float32, torch.float64)
"""Data types in which ones can be added up exactly, and fast."""


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


def sum_type(device: torch.device) -> torch.dtype:
    """Return the widest data type that sums can have on a device."""
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


@contextmanager
def plainly() -> Iterator[None]:
    """Compute without gradients, and so that the result can be added to in any mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Sums:
    """Running sums over all dimensions but the one that holds the units."""

    def __init__(self, group: UnitGroup, dim: int | None) -> None:
        self.group = group
        self.dim = dim
        self.signed = group.site is None or group.activation not in NON_NEGATIVE
        self.unit_of = group.site.unit_of if group.site is not None else None
        self.count = 0
        self.fired: Tensor | None = None
        self.totals: list[Tensor] = []  # of activations, and of magnitudes where those are not the same
        self._new: tuple[Tensor, list[Tensor]] | None = None
        self._others: tuple[int, ...] = ()
        self._shape: torch.Size | None = None

    @property
    def unsettled(self) -> bool:
        """Whether something was added that `settle` has to take in."""
        return self._new is not None

    def add(self, activations: Tensor) -> None:
        """Sum up the activations of one call; `settle` takes the sums in."""
        if self._new is not None:
            settle([self])
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                self._new = self._of(activations.detach())
        else:
            self._new = self._of(activations.detach())
        self.count += activations.numel() // self.group.size

    def _of(self, h: Tensor) -> tuple[Tensor, list[Tensor]]:
        if h.device.type != "cpu" or h.numel() <= PART or self.dim is None or h.dim() + self.dim < 1:
            return self._of_part(h)
        parts = h.split(max(1, PART * len(h) // h.numel()))
        fired, totals = self._of_part(parts[0])
        for part in parts[1:]:
            more, news = self._of_part(part)
            fired += more
            for total, new in zip(totals, news, strict=True):
                total += new
        return fired, totals

    def _of_part(self, h: Tensor) -> tuple[Tensor, list[Tensor]]:
        dtype = sum_type(h.device)
        totals = (
            [self._per_unit(h, dtype), self._per_unit(h.abs(), dtype)] if self.signed else [self._per_unit(h, dtype)]
        )
        if h.device.type != "cpu" or h.dtype not in _COUNTED_IN or h.numel() // self.group.size >= 2**24:
            return self._per_unit(h > 0, torch.int64), totals
        # A CPU compares and adds floating-point numbers several times faster than it counts booleans.
        positive = torch.gt(h, 0, out=torch.empty_like(h))
        return self._per_unit(positive, h.dtype).to(torch.int64), totals

    def _per_unit(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        if values.shape != self._shape:
            self._fit(values.shape)
        sums = values.sum(self._others, dtype=dtype) if self._others else values.to(dtype, copy=True)
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
        """Return what was added and settled so far; where nothing was, on the given device."""
        if self.fired is None:
            size = self.group.size
            nothing = torch.full((size,), float("nan"), dtype=sum_type(device), device=device)
            return UnitStatistics(torch.zeros(size, dtype=torch.int64, device=device), 0, nothing, nothing.clone())
        return UnitStatistics(self.fired.clone(), self.count, self.totals[0] / self.count, self.totals[-1] / self.count)


def settle(added: Sequence[Sums]) -> None:
    """Take in what was added to several groups, by a few operations for all of them."""
    counts: tuple[list[Tensor], list[Tensor]] = [], []
    totals: tuple[list[Tensor], list[Tensor]] = [], []
    for sums in added:
        if sums._new is None:
            continue
        fired, news = sums._new
        sums._new = None
        if sums.fired is None:
            sums.fired, sums.totals = fired, news
            continue
        counts[0].append(sums.fired)
        counts[1].append(fired)
        totals[0].extend(sums.totals)
        totals[1].extend(news)
    for into, new in (counts, totals):
        if into:
            torch._foreach_add_(into, new)
