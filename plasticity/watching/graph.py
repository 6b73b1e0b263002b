"""What is traced of watching: sums over activations as a fixed piece of tensor code, in the compiler's own graph."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from plasticity.tracing.functions import WATCHED_FUNCTIONS
from plasticity.watching.calls import EVERY
from plasticity.watching.layer_inputs import as_rows, input_of, unit_dim
from plasticity.watching.passes import callers

RUN = 2**10
"""A CPU adds up so many float32 activations in float32 at most, before it goes on in float64."""


class Place(NamedTuple):
    """Where a group of units is seen.

    Attributes:
        module: Qualified name.
        call: Which of its calls, or of the activation functions that it calls, in a pass; or `EVERY` one.
        function: Whether these are functions.
        dim: The negative dimension that holds the units; None if all is one unit.
        size: Number of units.
        length: Length of that dimension; None: any multiple of the size.
        signed: Whether there are negative activations.
        rows: Whether its units are the representation.
    """

    module: str
    call: int
    function: bool
    dim: int | None
    size: int
    length: int | None
    signed: bool
    rows: bool


class Seen(NamedTuple):
    """What was seen in a pass.

    Attributes:
        sums: Of all calls in a row, float64: of each how many activations were above 0, their sum, and that of their
            magnitudes, if it is not the same; None without a call.
        calls: Of each call the number of its place, the length of each of its sums, and activations.
        rows: Rows of the representation.
    """

    sums: Tensor | None
    calls: tuple[int, ...]
    rows: tuple[Tensor, ...]


class HookSet:
    """Hooks that are on the modules of a model in a block, again and again.

    They are registered once: to put them where PyTorch has put them then takes a fiftieth of the time.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[dict[int, Any], int, Any]] = []

    def before(self, module: nn.Module, hook: _Hook) -> None:
        """Plan to call `hook(module, args, kwargs)` before each call of a module."""
        self._plan(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, hook: _Hook, always_call: bool = False) -> None:
        """Plan to call `hook(module, args, output)` after each call, with `always_call` also after a failed one."""
        self._plan(module.register_forward_hook(hook, always_call=always_call))

    def _plan(self, handle: RemovableHandle) -> None:
        for each in (handle.hooks_dict_ref, *handle.extra_dict_ref):
            hooks = each()
            if hooks is not None and handle.id in hooks:
                self._entries.append((hooks, handle.id, hooks[handle.id]))
        handle.remove()

    def __enter__(self) -> None:
        for hooks, number, entry in self._entries:
            hooks[number] = entry

    def __exit__(self, *exception: object) -> None:
        for hooks, number, _ in self._entries:
            hooks.pop(number, None)


class Recorder:
    """Runs a network and notes what its units do, by code that a compiler can trace.

    It holds nothing between passes. Its hooks do nothing in passes that it does not run.

    Args:
        model: The network.
        places: Where to look.
        layers: Qualified names of layers whose inputs are the representation.
    """

    def __init__(self, model: nn.Module, places: list[Place], layers: list[str]) -> None:
        self.model, self.places = model, places
        self._calling = frozenset(place.module for place in places if place.function)
        self._inputs = {name: _Input(self) for name in layers}
        self._outputs = {place.module: _Output(self, place.module) for place in places if not place.function}
        self._around: dict[str, tuple[_Entering, _Leaving]] = {}
        self.end()

    def hooks(self) -> HookSet:
        """Return the hooks for the modules that there are now; they are the same every time, so that traces hold."""
        hooks, modules = HookSet(), dict(self.model.named_modules())
        for name in callers(modules) if self._calling else ():
            entering, leaving = self._around.setdefault(name, (_Entering(self, name), _Leaving(self, name)))
            hooks.before(modules[name], entering)
            hooks.after(modules[name], leaving, always_call=True)
        for name, output in self._outputs.items():
            hooks.after(modules[name], output)
        for name, each in self._inputs.items():
            if name in modules:
                hooks.before(modules[name], each)
        return hooks

    def run(self, note: Callable[..., None], args: Any, kwargs: Any) -> tuple[Any, Seen]:
        """Run the network, whose hooks are attached; `note` is told all that was seen, by number."""
        self.modules: list[str] = [""]
        self.calls: dict[str, int] = {}
        self.numbers: list[int] = []
        self.found: list[int] = []
        self.sums: list[Tensor] = []
        self.rows: list[Tensor] = []
        if self._calling:
            with _Functions(self):
                output = self.model._call_impl(*args, **kwargs)
        else:
            output = self.model._call_impl(*args, **kwargs)
        note(*self.numbers)
        seen = Seen(torch.cat(self.sums) if self.sums else None, tuple(self.found), tuple(self.rows))
        self.end()
        return output, seen

    def end(self) -> None:
        """Forget the pass; none is going on."""
        self.modules, self.calls, self.numbers, self.found, self.sums, self.rows = [], {}, [], [], [], []

    def look(self, module: str, function: bool, result: Any) -> None:
        """Note what a module, or an activation function that it called, returned."""
        if function and module not in self._calling:
            return
        key = f"{module} calls" if function else module
        call = self.calls.get(key, 0)
        self.calls[key] = call + 1
        for number, place in enumerate(self.places):
            if place.module == module and place.function == function and place.call in (call, EVERY):
                if isinstance(result, Tensor):
                    self._add(number, place, result.detach())
                elif not function:
                    raise TypeError(f"{module} returns no tensor")
        self.numbers.append(-1)  # a call that is missed would count the next as its own

    def _add(self, number: int, place: Place, h: Tensor) -> None:
        if place.dim is None:
            h = h.reshape(-1, 1)
        dim = 1 if place.dim is None else h.dim() + place.dim
        width = h.shape[dim]
        if dim < 0 or width == 0 or width % place.size or place.length not in (None, width):
            raise ValueError(f"{place.module} returns another shape")
        self.sums += sums_along(h, dim, place.signed)
        self.found += [number, width, h.numel()]
        self.numbers.append(number)
        if place.rows and place.dim is not None:
            self.add_rows(h, place.dim)

    def add_rows(self, x: Tensor, dim: int) -> None:
        """Keep rows of the representation."""
        self.numbers.append(-2)
        self.rows.append(as_rows(x.detach(), dim).clone())


def sums_along(h: Tensor, dim: int, signed: bool) -> list[Tensor]:
    """Return how many activations are above 0, their sum and, if signed, that of their magnitudes.

    Args:
        h: Activations.
        dim: The dimension that is not summed over.
        signed: Whether there are negative ones.

    Returns:
        Each of the length of that dimension, float64.
    """
    others = [each for each in range(h.dim()) if each != dim]
    wide = h if h.dtype in (torch.float32, torch.float64) else h.to(torch.float32)
    values = [(h > 0).to(wide.dtype), wide, *([wide.abs()] if signed else [])]
    return [_sum(each, others) for each in values]


def _sum(values: Tensor, others: list[int]) -> Tensor:
    """Sum over dimensions; short runs in their own type, which a CPU does several times faster."""
    # What is in a row in memory comes first; of one dimension alone, all of it.
    inner = others[1:] or others
    if inner and values.device.type == "cpu" and prod([values.shape[each] for each in inner]) <= RUN:
        values = values.sum(inner, keepdim=True)
    return values.sum(others, dtype=torch.float64).reshape(-1) if others else values.to(torch.float64)


class _Functions(TorchFunctionMode):
    """Hands over what every watched function returns."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in WATCHED_FUNCTIONS:
            self.recorder.look(self.recorder.modules[-1], True, result)
        return result


class _Hook:
    """Tells a recorder, while it runs the network, of a module. A copy of the module does not take it along."""

    def __init__(self, recorder: Recorder, name: str = "") -> None:
        self.recorder, self.name = recorder, name

    def __call__(self, *called: Any) -> None:
        """Note a call."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _left_behind, ()


def _nothing(*args: Any) -> None:
    """What a hook is in a copied model."""


def _left_behind() -> Callable[..., None]:
    return _nothing


class _Entering(_Hook):
    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.recorder.modules:
            self.recorder.modules.append(self.name)


class _Leaving(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.recorder.modules and self.recorder.modules[-1] == self.name:
            self.recorder.modules.pop()


class _Output(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.recorder.modules:
            self.recorder.look(self.name, False, output)


class _Input(_Hook):
    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.recorder.modules:
            self.recorder.add_rows(input_of(args, kwargs), unit_dim(module))
