"""Which parameters and buffers an operation uses, and whether a tensor is the plain weight of a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Geometry = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def storage(tensor: Tensor) -> torch.UntypedStorage | None:
    """Return the memory that a tensor shows; None for sparse and other tensors that do not show one piece of memory."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return None
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def geometry(tensor: Tensor) -> Geometry | None:
    """Identify the data a tensor shows: aliases that show the same elements in the same shape are one."""
    memory = storage(tensor)
    if memory is None:
        return None
    return memory._cdata, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())


def _flipped(key: Geometry) -> Geometry:
    return key[0], key[1], key[2][::-1], key[3][::-1]


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte that a tensor shows, and the first one after it."""
    start = int(tensor.storage_offset())
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start * tensor.element_size(), (start + last + 1) * tensor.element_size()


class Parameters:
    """The parameters and buffers of a model, and the copies of them that a forward pass makes.

    Attributes:
        uses: How many operations have computed with a parameter or buffer, by name; views do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        self.uses: dict[str, int] = {}
        self._names: dict[Geometry, list[str]] = {}
        self._spans: dict[int, list[tuple[int, int, list[str]]]] = {}
        self._owners: dict[str, tuple[int, str]] = {}
        self._alive: list[torch.UntypedStorage] = []
        own = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        for name, tensor in own:
            module, _, attribute = name.rpartition(".")
            self._owners[name] = (id(model.get_submodule(module)), attribute)
            self._add([name], tensor)

    def _add(self, names: list[str], tensor: Tensor, *, transposed: bool = False) -> None:
        key, memory = geometry(tensor), storage(tensor)
        if key is None or memory is None:
            return
        self._names.setdefault(_flipped(key) if transposed else key, []).extend(names)
        if tensor.numel():
            self._spans.setdefault(key[0], []).append((*_span(tensor), names))
        self._alive.append(memory)

    def find(self, tensor: Tensor) -> tuple[list[str], bool]:
        """Return the names of the parameter that a tensor shows whole, and whether it is transposed."""
        key = geometry(tensor)
        if key is None:
            return [], False
        if key in self._names:
            return self._names[key], False
        if tensor.dim() == 2 and _flipped(key) in self._names:
            return self._names[_flipped(key)], True
        return [], False

    def names_of(self, tensor: Tensor) -> list[str]:
        """Return the names of all parameters of which a tensor shows a part."""
        memory = storage(tensor)
        spans = self._spans.get(memory._cdata) if memory is not None else None
        if not spans or not tensor.numel():
            return []
        first, end = _span(tensor)
        return list(
            dict.fromkeys(name for start, stop, names in spans if start < end and first < stop for name in names)
        )

    def copied(self, source: Tensor, copy: Tensor) -> bool:
        """Register a copy of a whole parameter under the parameter's names; returns whether it is one."""
        names, transposed = self.find(source)
        if names and source.shape == copy.shape and not (set(names) & set(self.names_of(copy))):
            self._add(names, copy, transposed=transposed)
        return bool(names)

    def tied(self, name: str) -> str | None:
        """Return a parameter of another layer that shares memory with this one, if there is any."""
        for spans in self._spans.values():
            for start, stop, names in spans:
                if name in names:
                    for other_start, other_stop, others in spans:
                        if start < other_stop and other_start < stop:
                            for other in others:
                                if self._owners[other] != self._owners[name]:
                                    return other
        return None
