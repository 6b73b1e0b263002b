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
    """Knows the samples that buffers hold by their content.

    A buffer is looked at after every experience, and what it holds then are samples of that experience and some of
    those that it held before. So no others are remembered; only where that is not enough, all are gone through.

    Args:
        experiences: Of a stream, in order, each as Avalanche has it.
    """

    def __init__(self, experiences: Sequence[Any]):
        self._experiences = experiences
        self._places: dict[bytes, tuple[int, int]] = {}
        self._held: dict[bytes, tuple[int, int]] = {}
        self._known = 0

    def state_of(self, buffer: Any, experiences: int) -> dict[str, Any]:
        """Return what a storage policy holds.

        Args:
            buffer: The policy.
            experiences: From how many of the first experiences its samples can be.

        Raises:
            UnknownBufferError: If the policy or the data are of a kind that is not known.
        """
        for number in range(self._known, experiences):
            self._add(number)
        self._known = max(self._known, experiences)
        state: dict[str, Any] = {"kind": type(buffer).__name__, "max_size": buffer.max_size}
        if type(buffer) is ReservoirSamplingBuffer:
            return {**state, "places": self._places_of(buffer.buffer, experiences), "weights": buffer._buffer_weights}
        if type(buffer) not in _SIMPLE:
            raise UnknownBufferError(f"it stores samples in a {type(buffer).__name__}")
        groups = list(buffer.buffer_groups.values())
        other = next((group for group in groups if type(group) is not ReservoirSamplingBuffer), None)
        if other is not None:
            raise UnknownBufferError(f"it stores samples in a {type(other).__name__}")
        return {
            **state,
            **{name: _listed(getattr(buffer, name)) for name in _SIMPLE[type(buffer)]},
            # All groups together: there may be one for each experience.
            "groups": list(buffer.buffer_groups),
            "max_sizes": [group.max_size for group in groups],
            "counts": [len(group.buffer) for group in groups],
            "places": self._places_of(buffer.buffer, experiences),
            "weights": torch.cat([torch.zeros(0), *(group._buffer_weights for group in groups)]),
        }

    def load(self, buffer: Any, state: dict[str, Any]) -> None:
        """Fill a storage policy with what `state_of` returned."""
        buffer.max_size = int(state["max_size"])
        if type(buffer) is ReservoirSamplingBuffer:
            buffer._buffer_weights = state["weights"].clone()
            buffer.buffer = self._dataset(state["places"])
            self._know(buffer.buffer, state["places"])
            return
        buffer.buffer_groups = {}
        parts = zip(*(state[name].split(state["counts"]) for name in ("places", "weights")), strict=True)
        for key, size, (places, weights) in zip(state["groups"], state["max_sizes"], parts, strict=True):
            buffer.buffer_groups[key] = ReservoirSamplingBuffer(int(size))
            self.load(buffer.buffer_groups[key], {"max_size": size, "places": places, "weights": weights})
        for name in _SIMPLE[type(buffer)]:
            value = state[name]
            setattr(buffer, name, set(value) if isinstance(value, list) else value)

    def _places_of(self, dataset: Any, experiences: int) -> Tensor:
        """Return (samples, 2) numbers: the experience, and the sample in it."""
        if len(dataset) == 0:
            return torch.zeros(0, 2, dtype=torch.int64)
        keys = _keys(dataset)
        if not all(key in self._places for key in keys):
            for number in range(experiences):
                self._add(number)
        if not all(key in self._places for key in keys):
            raise UnknownBufferError("it stores samples that are in no experience so far")
        held = {key: self._places[key] for key in keys}
        self._held.update(held)
        return torch.tensor([held[key] for key in keys], dtype=torch.int64)

    def _add(self, number: int) -> None:
        for row, key in enumerate(_keys(self._experiences[number].dataset)):
            self._places.setdefault(key, (number, row))

    def forget_others(self) -> None:
        """Remember only the samples that buffers were found to hold since the last call."""
        self._places, self._held = self._held, {}

    def _know(self, dataset: Any, places: Tensor) -> None:
        if len(places):
            self._places.update(zip(_keys(dataset), map(tuple, places.tolist()), strict=True))
            self._known = max(self._known, int(places[:, 0].max()) + 1)

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
