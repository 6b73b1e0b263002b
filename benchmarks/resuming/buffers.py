"""Replay buffers as what they hold: which sample of which experience, in which order.

Samples are told by their content, so that it does not matter how a buffer has come by them.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.storage_policy import ClassBalancedBuffer, ExperienceBalancedBuffer, ReservoirSamplingBuffer
from torch import Tensor

from plasticity.loading import NotTensorsError, dataset_tensors

_SIMPLE = {ExperienceBalancedBuffer: ("_num_exps",), ClassBalancedBuffer: ("seen_classes",)}


class UnknownBufferError(Exception):
    """A replay buffer that cannot be taken apart; the message says why."""


class BufferIndex:
    """Knows the samples of all experiences by their content.

    Args:
        experiences: Of a stream, in order, each as Avalanche has it.
    """

    def __init__(self, experiences: Sequence[Any]):
        self._experiences = experiences
        self._places: dict[bytes, tuple[int, int]] = {}
        self._known = 0

    def state_of(self, buffer: Any, experiences: int) -> dict[str, Any]:
        """Return what a storage policy holds.

        Args:
            buffer: The policy.
            experiences: From how many of the first experiences its samples can be.

        Raises:
            UnknownBufferError: If the policy or the data are of a kind that is not known.
        """
        state: dict[str, Any] = {"kind": type(buffer).__name__, "max_size": buffer.max_size}
        if type(buffer) is ReservoirSamplingBuffer:
            return {**state, "places": self._places_of(buffer.buffer, experiences), "weights": buffer._buffer_weights}
        if type(buffer) not in _SIMPLE:
            raise UnknownBufferError(f"it stores samples in a {type(buffer).__name__}")
        groups = {key: self.state_of(group, experiences) for key, group in buffer.buffer_groups.items()}
        simple = {name: getattr(buffer, name) for name in _SIMPLE[type(buffer)]}
        return {**state, "groups": groups, **{name: _listed(value) for name, value in simple.items()}}

    def load(self, buffer: Any, state: dict[str, Any]) -> None:
        """Fill a storage policy with what `state_of` returned."""
        buffer.max_size = int(state["max_size"])
        if type(buffer) is ReservoirSamplingBuffer:
            buffer._buffer_weights = state["weights"].clone()
            buffer.buffer = self._dataset(state["places"])
            return
        buffer.buffer_groups = {}
        for key, part in state["groups"].items():
            buffer.buffer_groups[key] = ReservoirSamplingBuffer(int(part["max_size"]))
            self.load(buffer.buffer_groups[key], part)
        for name in _SIMPLE[type(buffer)]:
            value = state[name]
            setattr(buffer, name, set(value) if isinstance(value, list) else value)

    def _places_of(self, dataset: Any, experiences: int) -> Tensor:
        """Return (samples, 2) numbers: the experience, and the sample in it."""
        if len(dataset) == 0:
            return torch.zeros(0, 2, dtype=torch.int64)
        while self._known < experiences:
            for row, key in enumerate(_keys(self._experiences[self._known].dataset)):
                self._places.setdefault(key, (self._known, row))
            self._known += 1
        try:
            return torch.tensor([self._places[key] for key in _keys(dataset)], dtype=torch.int64)
        except KeyError:
            raise UnknownBufferError("it stores samples that are in no experience so far") from None

    def _dataset(self, places: Tensor) -> Any:
        if not len(places):
            return concat_datasets([])
        used = places[:, 0].unique().tolist()
        datasets = [self._experiences[number].dataset for number in used]
        starts = torch.zeros(max(used) + 1, dtype=torch.int64)
        start = 0
        for number, dataset in zip(used, datasets, strict=True):
            starts[number] = start
            start += len(dataset)
        return concat_datasets(datasets).subset((starts[places[:, 0]] + places[:, 1]).tolist())


def _keys(dataset: Any) -> list[bytes]:
    """Return a digest of each sample: of its input, its label, and its task label."""
    try:
        columns = dataset_tensors(dataset)
    except NotTensorsError as error:
        raise UnknownBufferError(f"of its data, {error}") from None
    rows = [column.cpu().contiguous().reshape(len(column), -1).view(torch.uint8).numpy() for column in columns]
    return [
        hashlib.blake2b(b"".join(part.tobytes() for part in sample), digest_size=16).digest()
        for sample in zip(*rows, strict=True)
    ]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, set) else value
