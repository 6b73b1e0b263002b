"""What a trace knows: which tensors hold which units, who wrote them, and which of them can no longer be private."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from plasticity.errors import TraceError
from plasticity.groups import WEIGHT_LAYERS
from plasticity.tracing.labels import LARGEST_LABEL, Plane, Value
from plasticity.tracing.parameters import Geometry, Parameters, geometry, storage


@dataclass
class Call:
    """One use of a Linear or Conv layer; its output rows carry the labels base … base + rows - 1.

    Not plain: the weight is not a parameter of the layer but computed, so that no row of it can be changed.
    """

    number: int
    layer: str
    base: int
    rows: int
    plain: bool


@dataclass
class WriteRecord:
    """One row of a writing call for each unit, -1 for none, a channel of a normaliser that scales it, its direction."""

    call: int
    rows: Tensor
    norm: str | None
    norm_rows: Tensor | None
    direction: int


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
    writes: list[WriteRecord]
    partial: str | None


@dataclass
class Read:
    """One use of a layer as a reader: the labels of each input column, -1 where a column reads several units."""

    layer: str
    labels: Tensor


class Ledger:
    """The record of one trace."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = Parameters(model)
        self.modules = dict(model.named_modules())
        self.idle_candidates = [name for name, parameter in model.named_parameters() if parameter.numel() > 1]
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
        self._data: dict[int, torch.UntypedStorage] = {}
        self._shown: dict[int, torch.UntypedStorage] = {}

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
                return self.calls[site.writes[0].call].layer
        raise AssertionError(f"label {label} was never given out")

    def escape(self, labels: Tensor, reason: str) -> None:
        """Note that units can be seen past their readers' own columns, and so are not private."""
        for label in labels.tolist():
            self.escapes.setdefault(int(label), reason)

    # --- tensors -----------------------------------------------------------------------------------------------

    def value(self, tensor: Tensor) -> Value | None:
        """Return what a tensor depends on; None if on no unit."""
        key = geometry(tensor)
        if key is None or key[0] not in self._held:
            return None
        found = self._values.get(key)
        if found is not None and found[1] == self._clock[key[0]]:
            return found[0] if found[0].planes else None
        # The memory was written through another view: which element now holds which unit is not known.
        for value in self._held[key[0]]:
            self.escape(value.labels(), "its memory is overwritten through another view")
        return None

    def record(self, tensor: Tensor, value: Value | None) -> None:
        """Note what a tensor depends on."""
        key, memory = geometry(tensor), storage(tensor)
        if value is not None and not value.planes:
            value = None
        if key is None or memory is None:
            if value is not None:
                self.escape(value.labels(), "it becomes part of a sparse or nested tensor")
            return
        number = key[0]
        if value is not None and (number in self._shown or not memory.resizable()):
            self.escape(value.labels(), "its memory is also that of an array outside of PyTorch")
        if value is None and number not in self._held:
            return
        if number not in self._held:
            self._held[number] = []
            self._clock[number] = 0
            self._alive.append(memory)
        self._values[key] = (value if value is not None else Value(()), self._clock[number])
        if value is not None:
            self._held[number].append(value)

    def show(self, tensor: Tensor) -> None:
        """Note that somebody outside of PyTorch has the address of a tensor, and sees what is written to it."""
        memory = storage(tensor)
        if memory is not None:
            self._shown[memory._cdata] = memory

    def let_go(self) -> list[tuple[StorageWeakRef, list[Value]]]:
        """Forget all tensors, and return what those that held units depended on, to see whether any lives on."""
        held = [(StorageWeakRef(memory), self._held[memory._cdata]) for memory in self._alive]
        self._alive, self._data, self._shown = [], {}, {}
        return held

    def holds_data(self, tensor: Tensor) -> bool:
        """Return whether a tensor depends on the inputs of the model, through units or otherwise."""
        memory = storage(tensor)
        return memory is not None and memory._cdata in self._data

    def mark_data(self, tensor: Tensor) -> None:
        """Note that a tensor depends on the inputs of the model."""
        memory = storage(tensor)
        if memory is not None:
            self._data[memory._cdata] = memory  # kept, so that no other memory gets its number

    def overwritten(self, tensor: Tensor) -> None:
        """Note that an operation has written to a tensor in place: other views of its memory are out of date."""
        memory = storage(tensor)
        if memory is not None and memory._cdata in self._clock:
            self._clock[memory._cdata] += 1

    def written(self, layer: str, rows: int, plain: bool) -> Call:
        """Open a call of a writing layer."""
        number = len(self.calls)
        call = Call(number, layer, self.mint(rows, number), rows, plain)
        self.calls.append(call)
        return call

    def layer_of(self, weights: list[str], where: str) -> str | None:
        """Return the Linear or Conv layer whose weight has one of these names, the running one if there are several."""
        layers = [name.rpartition(".")[0] for name in weights if name.rpartition(".")[2] == "weight"]
        layers = [name for name in layers if isinstance(self.modules.get(name), WEIGHT_LAYERS)]
        return where if where in layers else next(iter(layers), None)

    def idle(self) -> str | None:
        """Return a parameter that the pass has not used, if there is any."""
        return next((name for name in self.idle_candidates if name not in self.parameters.uses), None)
