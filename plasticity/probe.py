"""A fixed set of training inputs on which units are judged between updates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.activity import Activity, watch
from plasticity.errors import UserError
from plasticity.groups import UnitGroups


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
            alike = all(isinstance(part, Tensor) and part.dim() > 0 for part in column)
            if not alike or len({part.shape[1:] for part in column}) > 1:
                return cls(batches)
        joined = [torch.cat(column).split(size) for column in columns]
        return cls(list(zip(*joined, strict=True)))

    @property
    def samples(self) -> int:
        """How many samples the probe holds."""
        return sum(len(batch[0]) for batch in self.batches)

    def example(self, samples: int = 4) -> tuple[Any, ...]:
        """Return the first few samples of the last batch, to find units with.

        Raises:
            UserError: If the probe is empty.
        """
        if not self.batches:
            raise UserError("no training mini-batch has been seen yet")
        batch = self.batches[-1]
        length = len(batch[0])
        return tuple(
            part[:samples] if isinstance(part, Tensor) and part.dim() > 0 and len(part) == length else part
            for part in batch
        )

    def outputs(self, model: nn.Module) -> Tensor:
        """Run the model in eval mode over the probe and return its outputs, (samples, features)."""
        with _evaluating(model):
            return self._run(model)

    def watch(
        self, model: nn.Module, units: UnitGroups, *, inputs: bool = False, features: int = 0
    ) -> tuple[Activity, Tensor]:
        """Run the model in eval mode over the probe and return what its units did, and its outputs."""
        with _evaluating(model), watch(model, units, inputs=inputs, features=features) as activity:
            outputs = self._run(model)
        return activity, outputs

    def _run(self, model: nn.Module) -> Tensor:
        if not self.batches:
            raise UserError("no training mini-batch has been seen yet")
        found = [_first_tensor(model(*batch)).detach() for batch in self.batches]
        return torch.cat([part.reshape(len(part), -1).float() for part in found])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    parts = list(output.values()) if isinstance(output, dict) else output
    if isinstance(parts, list | tuple):
        for part in parts:
            if isinstance(part, Tensor):
                return part
    raise UserError(f"the model returns a {type(output).__name__} without a tensor in it")


def output_shift(before: Tensor, after: Tensor) -> float:
    """Return how far outputs moved: the mean distance of a sample's outputs over their mean length before.

    Args:
        before: (samples, features) outputs before an intervention.
        after: (samples, features) outputs after it.

    Returns:
        0 for equal outputs; the mean distance itself where all outputs were 0.
    """
    distance = float((after - before).norm(dim=1).mean())
    length = float(before.norm(dim=1).mean())
    return distance / length if length > 0 else distance
