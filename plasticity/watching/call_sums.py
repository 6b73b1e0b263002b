"""Sums over the activations of calls that are alike: of one shape, data type, layout in memory and device.

All ways of it give how many activations were above 0, their sum, and that of their magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from plasticity.watching.fused_sums import HALF, FusedSums, fusible

PART = 2**18
"""How many activations a CPU takes at a time: so many stay in its cache until all their sums are made."""

TOGETHER = 32
"""PyTorch's sums of so many calls are kept until they are added up together."""

FEW = 2**11
"""Samples with no more activations are added up first, and what is then one sample's later: that is quicker."""

_QUICK = (torch.float32, torch.float64)
"""Data types in which a CPU adds up one call's activations fast, and ones exactly; calls are added up in float64."""

_EXACT = 2**24
"""So many ones can be added up in float32."""


def sum_type(device: torch.device) -> torch.dtype:
    """Return the widest data type that sums can have on a device."""
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def add_up(values: Tensor, others: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the sums of values over some dimensions, perhaps none; a tensor of its own.

    Args:
        values: The values.
        others: The dimensions to sum over.
        dtype: Of the sums.
    """
    return values.sum(others, dtype=dtype) if others else values.to(dtype, copy=True)


class CallSums(Protocol):
    """Running sums of the activations of calls that are alike.

    Attributes:
        calls: How many there were.
    """

    calls: int

    def add(self, h: Tensor) -> None:
        """Add the activations of a call; if they are unlike those that the sums were made for, hand them on."""

    def clear(self) -> None:
        """Forget all calls."""

    def sums(self) -> list[Tensor]:
        """Return the sums over all calls; tensors of their own, or such as will not change.

        Returns:
            How many activations were above 0, int64; their sum; that of their magnitudes, if it is not the same. Each
            has the length of the one dimension that is not summed over. Nothing, if there was no call.
        """


def call_sums(h: Tensor, others: tuple[int, ...], signed: bool, otherwise: Callable[[Tensor], None]) -> CallSums:
    """Return the quickest sums for activations such as these.

    Args:
        h: Activations of a call.
        others: The dimensions to sum over: all but one at most.
        signed: Whether there are negative ones.
        otherwise: Called with activations of another kind.
    """
    if fusible(h):
        return FusedSums(h, others, signed, otherwise)
    observations = math.prod(h.shape[dim] for dim in others)
    floating = h.device.type == "cpu" and h.dtype in _QUICK + HALF and h.numel() > 0 and observations < _EXACT
    return (FloatSums if floating else AnySums)(h, others, signed, otherwise)


class AnySums:
    """On any device, in any data type, by PyTorch's own functions.

    Args:
        h: Activations of a call.
        others: The dimensions to sum over.
        signed: Whether there are negative ones.
        otherwise: Called with activations of another kind.
    """

    def __init__(self, h: Tensor, others: tuple[int, ...], signed: bool, otherwise: Callable[[Tensor], None]) -> None:
        self.calls = 0
        self._like = h.shape, h.dtype, h.device
        self._others, self._signed, self._otherwise = others, signed, otherwise
        self._wide = torch.float32 if h.dtype in HALF else h.dtype
        self._kept: list[list[Tensor]] = []
        self._totals: list[Tensor] = []

    def add(self, h: Tensor) -> None:
        """Add the activations of a call."""
        if (h.shape, h.dtype, h.device) != self._like:
            self._otherwise(h)
            return
        self.calls += 1
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                self._add(h.detach())
        else:
            self._add(h.detach())

    def clear(self) -> None:
        """Forget all calls."""
        self.calls, self._kept, self._totals = 0, [], []

    def sums(self) -> list[Tensor]:
        """Return the sums over all calls."""
        self._settle()
        return self._totals

    def _add(self, h: Tensor) -> None:
        kept = sum_type(h.device)
        sums = [add_up(h > 0, self._others, torch.int64), add_up(h, self._others, kept)]
        self._kept.append([*sums, add_up(h.abs(), self._others, kept)] if self._signed else sums)
        if len(self._kept) >= TOGETHER:
            self._settle()

    def _settle(self) -> None:
        """Add up what is new: of many calls at a time, which costs as much as of one."""
        kept, self._kept = self._kept, []
        if kept:
            new = [self._together(torch.stack(parts)) for parts in zip(*kept, strict=True)]
            new[0] = new[0].to(torch.int64)
            self._totals = [a + b for a, b in zip(self._totals, new, strict=True)] if self._totals else new

    def _together(self, parts: Tensor) -> Tensor:
        return parts.sum(0)


class FloatSums(AnySums):
    """On a CPU, with floating-point numbers alone: it adds these several times faster than it counts booleans.

    Memory to work in is kept from call to call: to get it anew would take as long as a sum.

    Args:
        h: Activations of a call.
        others: The dimensions to sum over.
        signed: Whether there are negative ones.
        otherwise: Called with activations of another kind.
    """

    def __init__(self, h: Tensor, others: tuple[int, ...], signed: bool, otherwise: Callable[[Tensor], None]) -> None:
        super().__init__(h, others, signed, otherwise)
        cut = h.numel() > PART and 0 in others
        self._length = max(1, PART * len(h) // h.numel()) if cut else len(h) if h.dim() else 0
        self._cut = cut and self._length < len(h)
        part = h.detach()[: self._length] if self._cut else h.detach()
        self._work = torch.empty_like(part, dtype=self._wide)
        few = 0 in others and part[0].numel() <= FEW
        self._now: tuple[int, ...] = (0,) if few else others
        self._later = (0, *(dim for dim in others if dim not in self._now))  # calls, where samples were

    def _add(self, h: Tensor) -> None:
        for part in h.split(self._length) if self._cut else (h,):
            self._add_part(part)
        if len(self._kept) >= TOGETHER:
            self._settle()

    def _add_part(self, h: Tensor) -> None:
        if h.dtype != self._wide:
            h = h.to(self._wide)
        work = self._work if h.shape == self._work.shape else self._work[: len(h)]
        torch.gt(h, 0, out=work)
        if not self._now:
            self._kept.append([work.clone(), h.clone(), *([h.abs()] if self._signed else [])])
            return
        sums = [work.sum(self._now), h.sum(self._now)]
        if self._signed:
            sums.append(torch.abs(h, out=work).sum(self._now))
        self._kept.append(sums)

    def _together(self, parts: Tensor) -> Tensor:
        return parts.sum(self._later, dtype=torch.float64)
