"""What a group of hidden units is: who writes each unit, what activates it, who reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plasticity.errors import UserError

WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose output rows can write units and whose input columns can read them."""


class Consumer(NamedTuple):
    """A layer that reads the units of a group.

    Attributes:
        layer: Qualified name of the reading layer.
        columns_per_unit: How many of its input columns read one unit (the spatial positions behind a flatten, else 1).
        columns: (size, columns_per_unit) input column that reads each unit: a feature of a Linear, an input channel of
            a convolution counted over all its groups; -1 pads units that this layer reads through fewer columns.
    """

    layer: str
    columns_per_unit: int
    columns: Tensor


class Write(NamedTuple):
    """A layer that writes units of a group, and the normaliser between the two.

    Attributes:
        layer: Qualified name of the writing layer.
        rows: (size,) output row of the layer that writes each unit, -1 where it writes none.
        norm: Qualified name of the normaliser between the layer and the activation, or None.
        norm_rows: (size,) channel of that normaliser that scales each unit, -1 where none does, or None.
        direction: 1 where what the activation sees rises with the layer's output, -1 where it falls, as in
            `relu(-layer(x))`, and 0 where neither is known; a normaliser's scale is left out.
    """

    layer: str
    rows: Tensor
    norm: str | None
    norm_rows: Tensor | None
    direction: int = 1


class Site(NamedTuple):
    """Where in a forward pass the activations of a group can be seen.

    Attributes:
        module: Qualified name of the innermost module, "" for the model itself.
        call: Which of the calls counted during one forward pass of the model, from 0.
        function: True: the call-th activation function called directly in that module; False: the output of the
            call-th call of that module.
        dim: Negative index of the dimension that holds the units, or None where every element is the one unit.
        unit_of: (length of dim,) unit of each index where units are not laid out as equal, consecutive runs.
    """

    module: str
    call: int
    function: bool
    dim: int | None
    unit_of: Tensor | None


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """The hidden units of one activation site.

    Made by `find_units`; by hand where a model cannot be traced:
    `UnitGroup("fc1", size=128, activation="relu", at="act1", consumers=[("fc2", 1)])`.

    Attributes:
        name: Qualified name of the (first) writing Linear or Conv.
        size: Number of units.
        activation: Name of the activation, such as "relu".
        producers: Qualified names of the layers that are added up, in execution order; `(name,)` if not given.
        norm: Qualified name of the normaliser between writer and activation, or None.
        consumers: Reading layers; `(layer, columns_per_unit)` stands for consecutive columns from the first on.
        private: Whether the outgoing weights of a unit may be changed alone. By hand: True if consumers are given.
        reason: Why not, in words; None for a private group.
        writes: Which row of which producer writes each unit; unit i by row i if not given.
        site: Where the activations are seen; by hand give `at` instead.
        at: Qualified name of a module whose output are the activations, units along dimension 1 (-1 for a Linear).

    Raises:
        UserError: If sizes do not fit or it is not said where the activations are.
    """

    name: str
    size: int
    activation: str
    producers: tuple[str, ...] = ()
    norm: str | None = None
    consumers: Sequence[Consumer | tuple[str, int]] = ()
    private: bool | None = None
    reason: str | None = None
    writes: tuple[Write, ...] = ()
    site: Site | None = None
    at: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise UserError(f"group '{self.name}': size must be at least 1, not {self.size!r}")
        if self.site is None and self.at is None:
            raise UserError(f"group '{self.name}': say which module's output are its activations, with at=\"...\"")
        producers = tuple(self.producers) or (self.name,)
        consumers = tuple(_consumer(self.name, self.size, entry) for entry in self.consumers)
        private = bool(consumers) if self.private is None else self.private
        reason = self.reason
        if private:
            reason = None
        elif reason is None:
            reason = "no consumers were declared" if not consumers else "declared as not private"
        rows = torch.arange(self.size)
        writes = self.writes or tuple(
            Write(layer, rows, self.norm, rows if self.norm is not None else None) for layer in producers
        )
        for write in writes:
            if write.rows.shape != (self.size,):
                raise UserError(f"group '{self.name}': rows of '{write.layer}' must have shape ({self.size},)")
        for field, value in {
            "producers": producers,
            "consumers": consumers,
            "private": private,
            "reason": reason,
            "writes": writes,
        }.items():
            object.__setattr__(self, field, value)

    @property
    def readers(self) -> tuple[Consumer, ...]:
        """The consumers, each with its full column map."""
        return tuple(entry for entry in self.consumers if isinstance(entry, Consumer))

    def __repr__(self) -> str:
        state = "private" if self.private else f"watched only: {self.reason}"
        return f"UnitGroup({self.name!r}, size={self.size}, activation={self.activation!r}, {state})"


def _consumer(name: str, size: int, entry: Consumer | tuple[str, int]) -> Consumer:
    if isinstance(entry, Consumer):
        return entry
    if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[1], int):
        raise UserError(f"group '{name}': a consumer is written (layer, columns per unit), not {entry!r}")
    layer, columns_per_unit = entry
    if columns_per_unit < 1:
        raise UserError(f"group '{name}': '{layer}' must read each unit through at least one column")
    return Consumer(layer, columns_per_unit, torch.arange(size * columns_per_unit).view(size, columns_per_unit))


class UnitGroups(Sequence[UnitGroup]):
    """The groups of a model in execution order; `groups["features.0"]` looks one up by name, `print` shows a table.

    Attributes:
        skipped: What looked like an activation of hidden units but cannot be watched, and why, one line each.
        outputs: Qualified name of the layer that writes the model's (first) output, or of every head of a model that
            has one for each task; they read the penultimate layer.
    """

    def __init__(
        self, groups: Iterable[UnitGroup], *, skipped: Sequence[str] = (), outputs: Sequence[str] = ()
    ) -> None:
        self._groups = tuple(groups) if isinstance(groups, Iterable) else (groups,)
        strange = [each for each in self._groups if not isinstance(each, UnitGroup)]
        if strange:
            raise UserError(f"groups must be UnitGroup objects, such as those of find_units, not {strange[0]!r}")
        self.skipped = tuple(skipped)
        self.outputs = tuple(outputs)
        self._by_name = {group.name: group for group in self._groups}
        if len(self._by_name) != len(self._groups):
            names = [group.name for group in self._groups]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UserError(f"two groups have the same name: {', '.join(twice)}")

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[UnitGroup]:
        return iter(self._groups)

    def __getitem__(self, key: str | int | slice) -> UnitGroup:  # type: ignore[override]  # a name is the usual key
        if isinstance(key, str):
            if key not in self._by_name:
                raise KeyError(f"no group '{key}'; there are: {', '.join(self._by_name) or 'none'}")
            return self._by_name[key]
        if isinstance(key, slice):
            raise TypeError("groups are looked up by name or position, not by slice")
        return self._groups[key]

    def __contains__(self, key: object) -> bool:
        return key in self._by_name if isinstance(key, str) else key in self._groups

    def __repr__(self) -> str:
        return table(self)

    __str__ = __repr__


def table(groups: UnitGroups) -> str:
    """Return the groups as aligned text: group, size, writes, norm, activation, reads, private or why not."""
    head = ("group", "size", "writes", "norm", "activation", "reads", "private")
    rows = [
        (
            group.name,
            str(group.size),
            _shorten(" + ".join(group.producers), 48),
            group.norm or "-",
            group.activation,
            _shorten(", ".join(f"{c.layer} x{c.columns_per_unit}" for c in group.readers) or "-", 48),
            "yes" if group.private else f"no: {group.reason}",
        )
        for group in groups
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    if not rows:
        lines = ["no hidden units: no Linear or Conv layer is followed by an activation"]
    return "\n".join([*lines, *(f"skipped: {line}" for line in groups.skipped)])


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own network inside `torch.compile`, DataParallel or DistributedDataParallel wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod") and isinstance(model._orig_mod, nn.Module):
            model = model._orig_mod
        else:
            return model


def layer(model: nn.Module, name: str) -> nn.Module:
    """Look a Linear or Conv layer up by qualified name.

    Raises:
        UserError: If there is none, or it is of another kind.
    """
    try:
        found = unwrap(model).get_submodule(name)
    except AttributeError:
        raise UserError(f"the model has no layer '{name}'; find its units again after it changes") from None
    if not isinstance(found, WEIGHT_LAYERS):
        raise UserError(f"'{name}' is a {type(found).__name__}, not a Linear or Conv layer")
    return found
