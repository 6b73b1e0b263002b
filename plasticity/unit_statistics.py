"""Running statistics of the units of one group: counts in int64, sums in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from plasticity.errors import UserError
from plasticity.groups import UnitGroup
from plasticity.tracing.functions import NON_NEGATIVE


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


def _positive(h: Tensor, size: int) -> Tensor:
    """Return 1 where an activation is above 0, in a data type in which a unit's ones can be added up exactly.

    A CPU compares and adds floating-point numbers several times faster than it counts booleans.
    """
    if h.device.type != "cpu" or h.numel() // size >= 2**24 or h.dtype not in (torch.float32, torch.float64):
        return h > 0
    return torch.gt(h, 0, out=torch.empty_like(h))


class Sums:
    """Running sums over all dimensions but the one that holds the units."""

    def __init__(self, group: UnitGroup, dim: int | None) -> None:
        self.group = group
        self.dim = dim
        self.signed = group.site is None or group.activation not in NON_NEGATIVE
        self.unit_of = group.site.unit_of if group.site is not None else None
        self.count = 0
        self.fired: Tensor | None = None
        self.total: Tensor | None = None
        self.total_abs: Tensor | None = None

    def add(self, activations: Tensor) -> None:
        """Add the activations of one call."""
        with plainly():
            h = activations.detach()
            dtype = sum_type(h.device)
            positive = _positive(h, self.group.size)
            counted_in = torch.int64 if positive.dtype == torch.bool else positive.dtype
            fired = self._per_unit(positive, counted_in).to(torch.int64)
            total_abs = self._per_unit(h.abs() if self.signed else h, dtype)
            total = self._per_unit(h, dtype) if self.signed else total_abs
            self.count += h.numel() // self.group.size
            if self.fired is None or self.total is None or self.total_abs is None:
                self.fired, self.total_abs = fired, total_abs
                self.total = total if self.signed else total_abs
            else:
                self.fired += fired
                self.total_abs += total_abs
                if self.signed:
                    self.total += total

    def _per_unit(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        if self.dim is None:
            return values.sum(dtype=dtype).view(1)
        dim = values.dim() + self.dim
        length = values.shape[dim] if dim >= 0 else 0
        expected = self.group.size if self.unit_of is None else len(self.unit_of)
        if length == 0 or length % expected or (self.unit_of is not None and length != expected):
            raise UserError(
                f"group '{self.group.name}' of {self.group.size} units sees activations of shape "
                f"{tuple(values.shape)}; find the units again after the model or its input changes"
            )
        others = [d for d in range(values.dim()) if d != dim]
        sums = values.sum(others, dtype=dtype) if others else values.to(dtype, copy=True)
        if self.unit_of is not None:
            self.unit_of = self.unit_of.to(sums.device, non_blocking=True)
            return sums.new_zeros(self.group.size).index_add_(0, self.unit_of, sums)
        return sums if length == self.group.size else sums.view(self.group.size, -1).sum(1)

    def statistics(self, device: torch.device) -> UnitStatistics:
        """Return what was added so far; where nothing was, on the given device."""
        size = self.group.size
        if self.fired is None or self.total is None or self.total_abs is None:
            nothing = torch.full((size,), float("nan"), dtype=sum_type(device), device=device)
            return UnitStatistics(torch.zeros(size, dtype=torch.int64, device=device), 0, nothing, nothing.clone())
        return UnitStatistics(self.fired.clone(), self.count, self.total / self.count, self.total_abs / self.count)
