"""One call of a PyTorch operator, and the table of rules that say how units move through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from plasticity.tracing.labels import Norm, Plane, Value, along, compact
from plasticity.tracing.ledger import Ledger


@dataclass
class Operation:
    """One call of a PyTorch operator.

    Attributes:
        function: The operator.
        name: Its name without overload and in-place mark, such as "add".
        args: Positional arguments.
        kwargs: Keyword arguments.
        inputs: The tensors among the arguments, in order.
        before: What each of the inputs depended on before the call.
        result: What it returned.
        where: Qualified name of the module that was running.
    """

    function: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Tensor]
    before: list[Value | None]
    result: Any
    where: str

    @property
    def in_place(self) -> bool:
        """Whether the operator overwrites its first argument."""
        return str(self.function._schema.name).endswith("_")

    @property
    def results(self) -> list[Tensor]:
        """The tensors it returned."""
        return tensors(self.result)

    def argument(self, name: str) -> Any:
        """Return an argument by its name in the operator's schema; its default, or None, if not given."""
        for position, declared in enumerate(self.function._schema.arguments):
            if declared.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, declared.default_value)
        return None

    def value(self, argument: Any) -> Value | None:
        """Return what one of the inputs depended on before the call."""
        for tensor, value in zip(self.inputs, self.before, strict=True):
            if tensor is argument:
                return value
        return None

    def place(self) -> str:
        """Name the operation and the module it runs in."""
        return f"`{self.name}`" + (f" in `{self.where}`" if self.where else "")


Rule = Callable[[Ledger, Operation], None]
RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), function))
        return function

    return register


def tensors(*trees: Any) -> list[Tensor]:
    """Return the tensors in nested arguments, in order."""
    return [leaf for leaf in tree_flatten(trees)[0] if isinstance(leaf, Tensor)]


def mix(ledger: Ledger, operation: Operation, reason: str | None = None) -> None:
    """Let every unit of the inputs escape; the results carry none."""
    for value in operation.before:
        if value is not None:
            ledger.escape(value.labels(), reason or f"{operation.place()} may mix it with other units")
    for result in operation.results:
        ledger.record(result, None)


def merged_norms(values: Sequence[Value | None]) -> dict[int, Norm]:
    """Put together the normalisers that several tensors have passed."""
    norms: dict[int, Norm] = {}
    for value in values:
        if value is not None:
            norms.update(value.norms)
    return norms


def reduced(ledger: Ledger, plane: Plane, dims: tuple[int, ...], reason: str) -> Plane:
    """Reduce dimensions, kept at length 1, to their one label; where several units meet, they escape."""
    high, mixed = along(plane, dims)
    if bool(mixed.any()):
        small = compact(plane)
        ledger.escape(torch.unique(small[torch.broadcast_to(mixed, small.shape)]).to(torch.int64), reason)
        high = torch.where(mixed, 0.0, high)
    return high
