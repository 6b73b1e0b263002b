"""Samples as tensors, and what still has to be done to them each time they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from plasticity.errors import UserError

_CHUNK = 2**19  # bytes


class NotTensorsError(UserError):
    """Data that cannot be had as tensors without a risk of changing them; the message says why."""


class Step(Protocol):
    """Something done to a batch of inputs, to each of them by itself."""

    @property
    def random(self) -> bool:
        """Whether it draws random numbers, for every sample its own."""

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """Return the inputs of some samples, a row each, as they are after this step."""


@dataclass(frozen=True)
class Rows:
    """Samples as tensors, one for each element of a sample, with a row for each sample.

    A data set of your own fits `TensorLoaderPlugin` if it has a method `tensor_rows(index)` that returns these: of the
    samples with the numbers `index` (int64), or of all for None. Collating single samples must give the same.

    Args:
        columns: Inputs as they are stored, labels, and what else a sample has.
        steps: What turns stored inputs into inputs.
        pictures: Whether the inputs, after these steps, stand for PIL images, which must become tensors by a further
            one.
    """

    columns: tuple[Tensor, ...]
    steps: tuple[Step, ...] = ()
    pictures: bool = False

    def __len__(self) -> int:
        return len(self.columns[0])

    def pick(self, index: Tensor | None) -> Rows:
        """Return some of the samples, by their numbers; None: all."""
        if index is None:
            return self
        return replace(self, columns=tuple(column.index_select(0, index.to(column.device)) for column in self.columns))

    def samples(self, index: Tensor | None = None) -> list[Tensor]:
        """Return samples as they are to be used.

        Args:
            index: Their numbers, int64, on the device of the columns; None: all.
        """
        chosen = [column if index is None else column.index_select(0, index) for column in self.columns]
        for step in self.steps:
            chosen[0] = step(chosen[0])
        return chosen

    def settled(self, room: float | None = None) -> Rows:
        """Return these samples with the steps taken that come before the first random one.

        Args:
            room: Bytes that the inputs may take afterwards; where they would take more, nothing is done. None: any.
        """
        taken = next((place for place, step in enumerate(self.steps) if step.random), len(self.steps))
        if taken == 0:
            return self
        inputs, *others = self.columns
        done, rest = self.steps[:taken], self.steps[taken:]
        one = _through(inputs[:1], done)
        if room is not None and one.nbytes * len(inputs) > room:
            return self
        # A few at a time, so that what lies between two steps stays in the processor's cache.
        settled = one.new_empty((len(inputs), *one.shape[1:]))
        few = max(1, _CHUNK // max(1, one.nbytes))
        for stored, place in zip(inputs.split(few), settled.split(few), strict=True):
            place.copy_(_through(stored, done))
        return Rows((settled, *others), rest, self.pictures)

    def to(self, device: torch.device | str) -> Rows:
        """Return these samples on a device."""
        return replace(self, columns=tuple(column.to(device) for column in self.columns))


def joined(parts: Sequence[Rows]) -> Rows:
    """Put samples one after the other.

    Raises:
        NotTensorsError: If they differ in shape or type, or pass through different random transformations.
    """
    if len({part.pictures for part in parts}) > 1:
        raise NotTensorsError("some samples are images and some are tensors")
    if any(part.steps != parts[0].steps or _kinds(part) != _kinds(parts[0]) for part in parts):
        parts = [part.settled() for part in parts]
    if any(part.steps != parts[0].steps for part in parts):
        raise NotTensorsError("samples pass through different random transformations")
    if any(_kinds(part) != _kinds(parts[0]) for part in parts):
        raise NotTensorsError("samples differ in shape, type or device")
    columns = tuple(torch.cat(column) for column in zip(*(part.columns for part in parts), strict=True))
    return replace(parts[0], columns=columns)


def _kinds(rows: Rows) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    return [(column.shape[1:], column.dtype, column.device) for column in rows.columns]


def _through(inputs: Tensor, steps: Sequence[Step]) -> Tensor:
    for step in steps:
        inputs = step(inputs)
    return inputs
