"""What a trace knows: which tensors hold which units, who wrote them, and which of them can no longer be private."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from plasticity.errors import TraceError
from plasticity.groups import WEIGHT_LAYERS
from plasticity.tracing.labels import LARGEST_LABEL, Plane, Value

Geometry = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@dataclass
class Call:
    """One use of a Linear or Conv layer; its output rows carry the labels base … base + rows - 1."""

    number: int
    layer: str
    base: int
    rows: int


@dataclass
class SiteRecord:
    """One activation of written units; unit u carries the label base + u."""

    base: int
    size: int
    activation: str
    module: str
    call: int
    function: bool
    dim: int | None
    unit_of: Tensor | None
    written: dict[int, Tensor]
    norms: dict[int, tuple[str, Tensor]]
    partial: str | None


@dataclass
class Read:
    """One use of a layer as a reader: the labels of each input column, -1 where a column reads several units."""

    layer: str
    labels: Tensor


def geometry(tensor: Tensor) -> Geometry:
    """Identify the data a tensor shows: aliases that show the same elements in the same shape are one."""
    return (
        tensor.untyped_storage()._cdata,
        int(tensor.storage_offset()),
        tuple(tensor.shape),
        tuple(tensor.stride()),
    )


@dataclass
class Parameters:
    """Which parameters are used, and whether a tensor is the plain weight of a layer."""

    names: dict[Geometry, list[str]] = field(default_factory=dict)
    storages: dict[int, list[str]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    weight_uses: dict[str, int] = field(default_factory=dict)
    copies: list[torch.UntypedStorage] = field(default_factory=list)

    def add(self, name: str, tensor: Tensor) -> None:
        """Register a parameter under one of its qualified names."""
        self.names.setdefault(geometry(tensor), []).append(name)
        self.storages.setdefault(tensor.untyped_storage()._cdata, []).append(name)

    def find(self, tensor: Tensor) -> tuple[list[str], bool]:
        """Return the names of the parameter that a tensor shows whole, and whether it is transposed."""
        key = geometry(tensor)
        if key in self.names:
            return self.names[key], False
        if tensor.dim() == 2:
            flipped = (key[0], key[1], key[2][::-1], key[3][::-1])
            if flipped in self.names:
                return self.names[flipped], True
        return [], False

    def alias(self, source: Tensor, copy: Tensor) -> None:
        """Register a copy of a parameter in another data type or place under the parameter's names."""
        names, transposed = self.find(source)
        if names:
            key = geometry(copy)
            if transposed:
                key = (key[0], key[1], key[2][::-1], key[3][::-1])
            self.names.setdefault(key, names)
            self.storages.setdefault(key[0], names)
            self.copies.append(copy.untyped_storage())

    def touch(self, tensor: Tensor) -> list[str]:
        """Note that an operation uses a tensor; returns the names of the parameters it shows."""
        names = self.storages.get(tensor.untyped_storage()._cdata, [])
        self.used.update(names)
        return names


class Ledger:
    """The record of one trace."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = Parameters()
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.parameters.add(name, parameter)
        self.layers = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, WEIGHT_LAYERS)}
        self.calls: list[Call] = []
        self.sites: list[SiteRecord] = []
        self.reads: list[Read] = []
        self.outputs: list[str] = []
        self.skipped: list[str] = []
        self.escapes: dict[int, str] = {}
        self._next = 1
        self._call_of = torch.full((1024,), -1, dtype=torch.int32)
        self._values: dict[Geometry, tuple[Value, int]] = {}
        self._clock: dict[int, int] = {}
        self._held: dict[int, list[Value]] = {}
        self._alive: list[torch.UntypedStorage] = []

    # --- units -------------------------------------------------------------------------------------------------

    def mint(self, count: int, call: int = -1) -> int:
        """Reserve labels for the rows of a writing call, or for the units of a site, and return the first."""
        base = self._next
        self._next += count
        if self._next >= LARGEST_LABEL:
            raise TraceError(f"the model has more than {LARGEST_LABEL} hidden units")
        if self._next > len(self._call_of):
            more = torch.full((max(self._next, 2 * len(self._call_of)) - len(self._call_of),), -1, dtype=torch.int32)
            self._call_of = torch.cat([self._call_of, more])
        self._call_of[base : self._next] = call
        return base

    def call_of(self, labels: Tensor) -> Tensor:
        """Return, for each label, the number of the writing call it belongs to; -1 for 0 and for units of a site."""
        return self._call_of[labels.to(torch.int64)]

    def raw(self, plane: Plane) -> Tensor:
        """Return where a plane names rows that no activation has seen yet."""
        return self.call_of(plane) >= 0

    def owner(self, label: int) -> str:
        """Name the layer that wrote a unit."""
        call = int(self._call_of[label])
        if call >= 0:
            return self.calls[call].layer
        for site in self.sites:
            if site.base <= label < site.base + site.size:
                return self.calls[min(site.written)].layer
        raise AssertionError(f"label {label} was never given out")

    def escape(self, labels: Tensor, reason: str) -> None:
        """Note that units can be seen past their readers' own columns, and so are not private."""
        for label in labels.tolist():
            self.escapes.setdefault(int(label), reason)

    # --- tensors -----------------------------------------------------------------------------------------------

    def value(self, tensor: Tensor) -> Value | None:
        """Return what a tensor depends on; None if on no unit."""
        storage = tensor.untyped_storage()._cdata
        if storage not in self._held:
            return None
        found = self._values.get(geometry(tensor))
        if found is not None and found[1] == self._clock[storage]:
            return found[0]
        # The memory was written through another view: which element now holds which unit is not known.
        for value in self._held[storage]:
            self.escape(value.labels(), "its memory is overwritten through another view")
        return None

    def record(self, tensor: Tensor, value: Value | None) -> None:
        """Note what a tensor depends on."""
        storage = tensor.untyped_storage()
        number = storage._cdata
        if value is not None and not value.planes:
            value = None
        if value is None and number not in self._held:
            return
        if number not in self._held:
            self._held[number] = []
            self._clock[number] = 0
            self._alive.append(storage)
        known = value if value is not None else Value(())
        self._values[geometry(tensor)] = (known, self._clock[number])
        if value is not None:
            self._held[number].append(value)

    def overwritten(self, tensor: Tensor) -> None:
        """Note that an operation has written to a tensor in place: other views of its memory are out of date."""
        number = tensor.untyped_storage()._cdata
        if number in self._clock:
            self._clock[number] += 1

    def written(self, layer: str, rows: int) -> Call:
        """Open a call of a writing layer."""
        number = len(self.calls)
        call = Call(number, layer, self.mint(rows, number), rows)
        self.calls.append(call)
        return call
