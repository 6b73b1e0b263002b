"""Running statistics of the units of one group: counts in int64, sums over calls in float64."""

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

TOGETHER = 32
"""The sums of so many calls are kept until they are added up together."""

_QUICK = (torch.float32, torch.float64)
"""Data types in which a CPU adds up one call's activations fast, and ones exactly; calls are added up in float64."""


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
        # Of how often units fired, of activations, and of magnitudes where those are not the same:
        self._sums: list[Tensor] = []
        self._new: list[list[Tensor]] = []  # as many, of calls that are not added up yet
        self._others: tuple[int, ...] = ()
        self._shape: torch.Size | None = None

    def add(self, activations: Tensor) -> None:
        """Sum up the activations of one call."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                self._add(activations.detach())
        else:
            self._add(activations.detach())
        self.count += activations.numel() // self.group.size

    def _add(self, h: Tensor) -> None:
        cut = h.device.type == "cpu" and h.numel() > PART and self.dim is not None and h.dim() + self.dim >= 1
        for part in h.split(max(1, PART * len(h) // h.numel())) if cut else (h,):
            self._new.append(self._of(part))
        if len(self._new) >= TOGETHER:
            self._settle()

    def _of(self, h: Tensor) -> list[Tensor]:
        """Return the sums of one call, or of a part of it."""
        if h.device.type != "cpu" or h.dtype not in _QUICK or h.numel() // self.group.size >= 2**24:
            kept = sum_type(h.device)
            fired = self._per_unit(h > 0, torch.int64)
            return [fired, self._per_unit(h, kept), *([self._per_unit(h.abs(), kept)] if self.signed else [])]
        # A CPU compares and adds floating-point numbers several times faster than it counts booleans.
        work = torch.gt(h, 0, out=torch.empty_like(h))
        found = [self._per_unit(work, h.dtype), self._per_unit(h, h.dtype)]
        return [*found, self._per_unit(torch.abs(h, out=work), h.dtype)] if self.signed else found

    def _settle(self) -> None:
        """Add up what is new: of many calls at a time, which costs as much as of one."""
        if not self._new:
            return
        new, self._new = self._new, []
        for index, parts in enumerate(zip(*new, strict=True)):
            total = _total(parts, torch.int64 if index == 0 else sum_type(parts[-1].device))
            if index < len(self._sums):
                self._sums[index] = self._sums[index].to(total.device) + total
            else:
                self._sums.append(total)

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
        """Return what was added so far; where nothing was, on the given device."""
        with plainly():
            self._settle()
        if not self._sums:
            size = self.group.size
            nothing = torch.full((size,), float("nan"), dtype=sum_type(device), device=device)
            return UnitStatistics(torch.zeros(size, dtype=torch.int64, device=device), 0, nothing, nothing.clone())
        fired, *totals = self._sums
        return UnitStatistics(fired.clone(), self.count, totals[0] / self.count, totals[-1] / self.count)


def _total(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Add up tensors of one shape, in double precision or as whole numbers."""
    if len({(part.dtype, part.device) for part in parts}) > 1:
        parts = [part.to(parts[-1].device, dtype) for part in parts]
    wide = torch.float64 if parts[0].is_floating_point() and dtype == torch.int64 else dtype
    return torch.stack(list(parts)).sum(0, dtype=wide).to(dtype)
