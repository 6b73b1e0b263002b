"""Find the head of a network: the modules that lead from its last hidden layer to its output, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plasticity.architecture.rewriting import Example
from plasticity.errors import UserError
from plasticity.groups import UnitGroups
from plasticity.tracing.preserve import Uncompiled, preserved


class _State(NamedTuple):
    """A value at a moment: in-place operations make another one of the same tensor."""

    value: Any
    version: int

    def same(self, other: _State) -> bool:
        return self.value is other.value and self.version == other.version


class _Call(NamedTuple):
    name: str
    inputs: tuple[_State, ...]
    output: _State


def find_head(
    model: nn.Module, example: Example, units: UnitGroups, names: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Find modules that follow one another up to the output, each reading nothing but the output of the one before.

    Args:
        model: The network.
        example: An input, or a tuple of its positional inputs.
        units: Its hidden units.
        names: Qualified names of the modules, in order, to be checked; None: the shortest such chain with a layer of
            hidden units in it.

    Returns:
        Their names.

    Raises:
        UserError: If there is no such chain, or the modules named are none.
    """
    output, calls = _record(model, example)
    if names is None:
        hidden = {producer for group in units for producer in group.producers}
        found = next(_chains(output, calls, hidden), None)
        if found is None:
            raise UserError(
                "no head with a hidden layer was found, because functions stand between its modules: name the modules "
                "from which the output is computed, one after the other, such as head=('classifier',)"
            )
        return found
    if not names:
        raise UserError("a head needs at least one module")
    wanted: _State | None = output
    for name in reversed(names):
        matching = [call for call in calls if call.name == name]
        if len(matching) != 1:
            known = name in dict(model.named_modules())
            raise UserError(f"'{name}' is called {len(matching)} times" if known else f"the model has no '{name}'")
        if wanted is None or not matching[0].output.same(wanted):
            raise UserError(f"the output of '{name}' is not what the rest of the head takes in, or the output")
        wanted = _source(matching[0], last=name == names[-1])
        if name != names[0] and wanted is None:
            raise UserError(f"'{name}' cannot be in the middle of a head: it takes more than one input")
    return tuple(names)


def _state(value: Any) -> _State:
    return _State(value, value._version if isinstance(value, Tensor) else 0)


def _record(model: nn.Module, example: Example) -> tuple[_State, list[_Call]]:
    """Run the network; returns its output and the calls of its modules, inner ones before those around them."""
    calls: list[_Call] = []
    names = {module: name for name, module in model.named_modules() if name}

    running: list[tuple[_State, ...]] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(tuple(map(_state, (*args, *kwargs.values()))))

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(_Call(names[module], running.pop(), _state(output)))

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in names]
    handles += [module.register_forward_hook(leave, with_kwargs=True) for module in names]
    try:
        with preserved(model), torch.no_grad(), Uncompiled():
            model.eval()
            return _state(model(*(example if isinstance(example, tuple) else (example,)))), calls
    finally:
        for handle in handles:
            handle.remove()


def _source(call: _Call, last: bool = False) -> _State | None:
    """Return the input of a call; None if it has several, of which only the last module of a head may have some."""
    return call.inputs[0] if call.inputs and (last or len(call.inputs) == 1) else None


def _chains(
    wanted: _State | None, calls: list[_Call], hidden: set[str], last: bool = True
) -> Iterator[tuple[str, ...]]:
    """List chains of modules that end in a tensor and have a hidden layer in them, those of small modules first."""
    if wanted is None or not isinstance(wanted.value, Tensor):
        return
    for position, call in enumerate(calls):
        if not call.output.same(wanted) or [other.name for other in calls].count(call.name) > 1:
            continue
        if any(layer == call.name or layer.startswith(f"{call.name}.") for layer in hidden):
            yield (call.name,)
        else:
            before = _chains(_source(call, last), calls[:position], hidden, last=False)
            yield from ((*chain, call.name) for chain in before)
