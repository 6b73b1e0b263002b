"""Sums over the activations of single calls, kept until those of many calls are added up together.

All ways of it give, of each call on its own, how many activations are above 0, their sum, and that of their magnitudes.
How many calls are added up at a time therefore makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

PART = 2**18
"""How many activations a CPU takes at a time: so many stay in its cache until all their sums are made."""

TOGETHER = 32
"""The sums of so many calls are kept until they are added up together."""

SMALL = 2**13
"""Calls with no more activations are summed up some at a time."""

ROOM = 2**15
"""So many activations of such calls are held."""

FEW = 2**11
"""Samples with no more activations are added up first, and what is then one sample's later: that is quicker."""

_QUICK = (torch.float32, torch.float64)
"""Data types in which a CPU adds up one call's activations fast, and ones exactly; calls are added up in float64."""

_HALF = (torch.bfloat16, torch.float16)
"""Those that a CPU turns into float32 first, which is exact."""

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
    """Sums of the activations of calls, all of one shape, data type and device."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def add(self, h: Tensor) -> bool:
        """Sum up the activations of one call; returns whether it is time to `take`."""

    def take(self) -> list[Tensor]:
        """Return the sums over all calls since the last time, and forget them.

        Returns:
            How many activations were above 0, int64; their sum; that of their magnitudes, if it is not the same. Each
            has the length of the one dimension that is not summed over. Nothing, if there was no call.
        """


def call_sums(h: Tensor, others: tuple[int, ...], signed: bool) -> CallSums:
    """Return the quickest sums for activations such as these.

    Args:
        h: Activations of a call, without a gradient.
        others: The dimensions to sum over: all but one at most.
        signed: Whether there are negative ones.
    """
    observations = h.numel()
    for dim in range(h.dim()):
        if dim not in others:
            observations //= max(h.shape[dim], 1)
    if h.device.type != "cpu" or h.dtype not in _QUICK + _HALF or observations >= _EXACT or not observations:
        return _AnySums(h, others, signed)
    if h.numel() <= SMALL:
        return _SmallSums(h, others, signed)
    return _LargeSums(h, others, signed)


class _Base:
    """What all have.

    Args:
        h: Activations of a call.
        others: The dimensions to sum over.
        signed: Whether there are negative ones.
    """

    def __init__(self, h: Tensor, others: tuple[int, ...], signed: bool) -> None:
        self.shape, self.dtype, self.device = h.shape, h.dtype, h.device
        self.others, self.signed = others, signed
        self._wide = torch.float32 if h.dtype in _HALF else h.dtype


class _AnySums(_Base):
    """On any device, in any data type."""

    def __init__(self, h: Tensor, others: tuple[int, ...], signed: bool) -> None:
        super().__init__(h, others, signed)
        self._kept: list[list[Tensor]] = []

    def add(self, h: Tensor) -> bool:
        """Sum up the activations of one call."""
        kept = sum_type(h.device)
        sums = [add_up(h > 0, self.others, torch.int64), add_up(h, self.others, kept)]
        self._kept.append([*sums, add_up(h.abs(), self.others, kept)] if self.signed else sums)
        return len(self._kept) >= TOGETHER

    def take(self) -> list[Tensor]:
        """Return the sums since the last time."""
        kept, self._kept = self._kept, []
        return [torch.stack(parts).sum(0) for parts in zip(*kept, strict=True)]


class _LargeSums(_Base):
    """On a CPU, call by call: it compares and adds floating-point numbers several times faster than it counts booleans.

    Memory to work in is kept from call to call: to get it anew would take as long as a sum.
    """

    def __init__(self, h: Tensor, others: tuple[int, ...], signed: bool) -> None:
        super().__init__(h, others, signed)
        cut = h.numel() > PART and 0 in others
        self._length = max(1, PART * len(h) // h.numel()) if cut else len(h) if h.dim() else 0
        self._cut = cut and self._length < len(h)
        part = h[: self._length] if self._cut else h
        self._work = torch.empty_like(part, dtype=self._wide)
        few = 0 in others and part[0].numel() <= FEW
        self._now: tuple[int, ...] = (0,) if few else others
        self._later = tuple(dim for dim in others if dim not in self._now)
        self._kept: list[list[Tensor]] = []
        self._calls = 0

    def add(self, h: Tensor) -> bool:
        """Sum up the activations of one call."""
        for part in h.split(self._length) if self._cut else (h,):
            self._add(part)
        self._calls += 1
        return self._calls >= TOGETHER

    def _add(self, h: Tensor) -> None:
        if h.dtype != self._wide:
            h = h.to(self._wide)
        work = self._work if h.shape == self._work.shape else self._work[: len(h)]
        torch.gt(h, 0, out=work)
        if not self._now:
            self._kept.append([work.clone(), h.clone(), *([h.abs()] if self.signed else [])])
            return
        sums = [work.sum(self._now), h.sum(self._now)]
        if self.signed:
            sums.append(torch.abs(h, out=work).sum(self._now))
        self._kept.append(sums)

    def take(self) -> list[Tensor]:
        """Return the sums since the last time."""
        kept, self._kept, self._calls = self._kept, [], 0
        dims = (0, *self._later)  # calls, where samples were
        return _counted([torch.stack(parts).sum(dims, dtype=torch.float64) for parts in zip(*kept, strict=True)])


class _SmallSums(_Base):
    """On a CPU, some calls at a time: to copy a few activations costs less than to call functions on them."""

    def __init__(self, h: Tensor, others: tuple[int, ...], signed: bool) -> None:
        super().__init__(h, others, signed)
        self._room = max(1, min(TOGETHER, ROOM // h.numel()))
        self._held = torch.zeros(self._room, *h.shape, dtype=self._wide)
        self._work = torch.empty_like(self._held)
        self._places = self._held.unbind(0)
        self._place = 0
        self._kept: list[list[Tensor]] = []

    def add(self, h: Tensor) -> bool:
        """Hold the activations of one call."""
        self._places[self._place].copy_(h)
        self._place += 1
        if self._place == self._room:
            self._kept.append(self._sums())
            self._place = 0
        return self._place + self._room * len(self._kept) >= TOGETHER

    def take(self) -> list[Tensor]:
        """Return the sums since the last time."""
        kept, self._kept = self._kept, []
        if self._place:
            # Of all places, also of such as hold an older call: a call's sums then do not depend on the others.
            kept.append([each[: self._place] for each in self._sums()])
            self._place = 0
        rest = [0, *(self.others[1:] if 0 in self.others else [1 + dim for dim in self.others])]
        return _counted([torch.cat(parts).sum(rest, dtype=torch.float64) for parts in zip(*kept, strict=True)])

    def _sums(self) -> list[Tensor]:
        """Add up the samples of each call: what is in a row in memory comes last."""
        fired = self._sum(torch.gt(self._held, 0, out=self._work))
        found = [fired, self._sum(self._held)]
        return [*found, self._sum(torch.abs(self._held, out=self._work))] if self.signed else found

    def _sum(self, values: Tensor) -> Tensor:
        return values.sum(1) if 0 in self.others else values.clone()


def _counted(sums: Sequence[Tensor]) -> list[Tensor]:
    """Turn the first, of ones, into whole numbers."""
    return [each.to(torch.int64) if index == 0 else each for index, each in enumerate(sums)]
