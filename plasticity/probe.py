"""A fixed set of training inputs on which units are judged between updates."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.distributed import own_copy
from plasticity.errors import UserError
from plasticity.groups import UnitGroups
from plasticity.tracing.outputs import output_tensors
from plasticity.watching.activity import Activity, watch


class Probe:
    """Inputs of training mini-batches.

    Args:
        batches: Positional inputs of the model, one tuple a batch; the first input of each holds its samples.
    """

    def __init__(self, batches: Sequence[tuple[Any, ...]]) -> None:
        self.batches = tuple(batches)

    @classmethod
    def joined(cls, batches: Sequence[tuple[Any, ...]], size: int = 512) -> Probe:
        """Make a probe of the same samples in batches of another size, which fewer, larger passes serve faster.

        Args:
            batches: As for `Probe`; batches whose inputs are not all tensors, or do not fit together, stay as they are.
            size: Samples in a batch.
        """
        columns = list(zip(*batches, strict=True))
        for column in columns:
            alike = all(
                isinstance(part, Tensor) and part.dim() > 0 and len(part) == len(batch[0])
                for part, batch in zip(column, batches, strict=True)
            )
            if not alike or len({part.shape[1:] for part in column}) > 1:
                return cls(batches)
        joined = [torch.cat(column).split(size) for column in columns]
        return cls(list(zip(*joined, strict=True)))

    @property
    def samples(self) -> int:
        """How many samples the probe holds."""
        return sum(len(batch[0]) for batch in self.batches)

    def example(self, samples: int = 4) -> tuple[Any, ...]:
        """Return the first few samples of the largest batch, to find units with.

        Raises:
            UserError: If the probe is empty.
        """
        if not self.batches:
            raise UserError("no training mini-batch has been seen yet")
        return _rows(max(self.batches, key=lambda batch: len(batch[0])), slice(samples))

    def outputs(self, model: nn.Module) -> Tensor:
        """Run the model in eval mode over the probe and return its outputs, (samples, features)."""
        with _evaluating(model):
            return self._run(model)

    def watch(
        self, model: nn.Module, units: UnitGroups, *, inputs: bool | Collection[str] = False, features: int = 0
    ) -> tuple[Activity, Tensor]:
        """Run the model in eval mode over the probe and return what its units did, and its outputs."""
        with _evaluating(model), watch(model, units, inputs=inputs, features=features) as activity:
            outputs = self._run(model)
        return activity, outputs

    def _run(self, model: nn.Module) -> Tensor:
        if not self.batches:
            raise UserError("no training mini-batch has been seen yet")
        found = [_first_tensor(own_copy(model)(*batch)).detach() for batch in self.batches]
        return torch.cat([part.reshape(len(part), -1).float() for part in found])


class RecentInputs:
    """The latest inputs of a stream of mini-batches.

    Args:
        limit: How many samples are kept, at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.samples = 0
        self._batches: deque[tuple[Any, ...]] = deque()

    def add(self, batch: tuple[Any, ...]) -> None:
        """Take in the inputs of a mini-batch, and forget the oldest samples that are too many."""
        self._batches.append(tuple(part.detach() if isinstance(part, Tensor) else part for part in batch))
        self.samples += len(batch[0])
        while self.samples > self.limit:
            oldest, surplus = self._batches.popleft(), self.samples - self.limit
            self.samples -= min(len(oldest[0]), surplus)
            if len(oldest[0]) > surplus:
                self._batches.appendleft(_rows(oldest, slice(surplus, None)))

    def batches(self) -> list[tuple[Any, ...]]:
        """Return the latest samples, at most `limit`, in batches as they came."""
        found: list[tuple[Any, ...]] = []
        room = self.limit
        for batch in reversed(self._batches):
            length = len(batch[0])
            if room > 0 and length > 0:
                found.append(_rows(batch, slice(max(length - room, 0), length)))
            room -= length
        return found[::-1]

    def probe(self, device: torch.device | str | None = None) -> Probe:
        """Return the latest samples as a probe, on a device."""
        batches = [
            tuple(part.to(device) if isinstance(part, Tensor) else part for part in batch) for batch in self.batches()
        ]
        return Probe.joined(batches)


def balanced(probe: Probe, labels: Tensor, size: int) -> Probe:
    """Choose samples of a probe so that classes are as equal in number as they can be.

    Args:
        probe: Training inputs, oldest first.
        labels: (samples,) their classes; anything else than whole numbers, one a sample, leaves out the oldest.
        size: How many samples, at most.
    """
    total = probe.samples
    if total <= size:
        return probe
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or len(labels) != total:
        chosen = torch.arange(total - size, total)
    else:
        latest = labels.cpu().flip(0)
        order = latest.argsort(stable=True)
        counts = torch.unique_consecutive(latest[order], return_counts=True)[1]
        starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(total) - starts  # how many later samples of its class there are
        chosen = (total - 1 - rank.argsort(stable=True)[:size]).sort().values
    found, start = [], 0
    for batch in probe.batches:
        length = len(batch[0])
        rows = chosen[(chosen >= start) & (chosen < start + length)] - start
        start += length
        if len(rows):
            found.append(_rows(batch, rows))
    return Probe.joined(found)


def _rows(batch: tuple[Any, ...], rows: slice | Tensor) -> tuple[Any, ...]:
    """Return some samples of a batch; what does not hold one entry a sample stays whole."""
    length = len(batch[0])
    found = []
    for part in batch:
        if isinstance(part, Tensor) and part.dim() > 0 and len(part) == length:
            part = part[rows if isinstance(rows, slice) else rows.to(part.device)]
        found.append(part)
    return tuple(found)


HEAD_BY_MODE: set[type[nn.Module]] = set()
"""Modules that have another head for evaluation, which need not be ready: a probe leaves them in their mode."""


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for module, training in modes:
            if type(module) in HEAD_BY_MODE:
                module.training = training
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _first_tensor(output: Any) -> Tensor:
    """Return the first tensor of a model's output, in whatever containers or objects it is."""
    for tensor in output_tensors(output, set()):
        if tensor.dim():
            return tensor
    raise UserError(f"the model returns a {type(output).__name__} without a tensor in it")


def output_shift(before: Tensor, after: Tensor) -> float:
    """Return how far outputs moved: the mean distance of a sample's outputs over their mean length before.

    Features that were and are the same number for every sample, as those of classes that a head hides, are left out.

    Args:
        before: (samples, features) outputs before an intervention.
        after: (samples, features) outputs after it.

    Returns:
        0 for equal outputs; the mean distance itself where all outputs were 0.
    """
    varies = ((before != before[:1]) | (after != before[:1])).any(0)
    distance = float((after - before)[:, varies].norm(dim=1).mean())
    length = float(before[:, varies].norm(dim=1).mean())
    return distance / length if length > 0 else distance
