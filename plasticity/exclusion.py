"""Layers that are left alone, by name: no method writes to their parameters, buffers or optimizer state.

A unit is treated only where that writes to none of them. So units that an excluded layer writes are not, and neither
are those with an excluded normaliser behind them. Where an excluded layer reads a unit, its columns belong to that
layer: nothing may be changed that needs its outgoing weights to change, and the unit counts as not private.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, unwrap

Exclude = str | Iterable[str] | None


class Exclusion:
    """Layers of a network that are left alone.

    Args:
        patterns: Qualified names of layers, or patterns as for file names: `*` stands for any text, dots too, `?` for
            one character, `[ab]` for one of some. One, several, or several in one text with `|` between them. A name
            stands for everything inside that module, too. None: nothing is excluded.

    Attributes:
        patterns: The single patterns.

    Raises:
        UserError: If they are no text.
    """

    def __init__(self, patterns: Exclude = None) -> None:
        several = [patterns] if isinstance(patterns, str | int) else [] if patterns is None else patterns
        found: list[str] = []
        for each in several if isinstance(several, Iterable) else [several]:
            if isinstance(each, int) and not isinstance(each, bool):  # a layer of nn.Sequential
                each = str(each)
            if not isinstance(each, str) or not all(part.strip() for part in each.split("|")):
                raise UserError(f'exclude takes names of layers or patterns, such as "classifier*", not {each!r}')
            found += [part.strip() for part in each.split("|")]
        self.patterns = tuple(found)

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def __repr__(self) -> str:
        return f"Exclusion({list(self.patterns)!r})"

    def layers(self, model: nn.Module) -> frozenset[str]:
        """Return the qualified names of all excluded modules, also of those that share a parameter with one.

        Raises:
            UserError: If there is nothing that a pattern fits.
        """
        if not self:
            return frozenset()
        modules = dict(unwrap(model).named_modules(remove_duplicate=False))
        named: set[str] = set()
        for pattern in self.patterns:
            matching = [name for name in modules if fnmatchcase(name, pattern)]
            if not matching:
                raise UserError(f"exclude: {_no_layer(pattern, modules)}")
            named.update(matching)
        inside = {name for name in modules if any(_is_in(name, each) for each in named)}
        shared = {tensor for name in inside for tensor in _own(modules[name])}
        return frozenset(inside | {name for name, module in modules.items() if shared & set(_own(module))})

    def tensors(self, model: nn.Module) -> frozenset[Tensor]:
        """Return the parameters and buffers of all excluded modules."""
        modules = dict(unwrap(model).named_modules(remove_duplicate=False)) if self else {}
        return frozenset(tensor for name in self.layers(model) for tensor in _own(modules[name]))

    def treatable(self, model: nn.Module, units: UnitGroups) -> UnitGroups:
        """Return the groups that may be treated, those with an excluded reader as not private.

        Args:
            model: The network.
            units: Its groups.
        """
        if not self:
            return units
        layers = self.layers(model)
        found = []
        for group in units:
            reader = next((each.layer for each in group.readers if each.layer in layers), None)
            if _written_by(group, layers) is not None:
                continue
            if group.private and reader is not None:
                group = replace(group, private=False, reason=f"`{reader}`, which reads it, is excluded")
            found.append(group)
        return UnitGroups(found, skipped=units.skipped, outputs=units.outputs)

    def left_alone(self, model: nn.Module, units: UnitGroups) -> dict[str, str]:
        """Return why groups are missing among the treatable ones, in words, by name."""
        layers = self.layers(model)
        found = {group.name: _written_by(group, layers) for group in units}
        return {name: f"`{layer}`, which writes it, is excluded" for name, layer in found.items() if layer is not None}


def _written_by(group: UnitGroup, layers: Collection[str]) -> str | None:
    """Return the first of some layers that writes a group, or normalises it."""
    names = [name for write in group.writes for name in (write.layer, write.norm) if name is not None]
    return next((name for name in (*names, *group.producers) if name in layers), None)


def _own(module: nn.Module) -> list[Tensor]:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [tensor for tensor in tensors if not is_lazy(tensor)]


def _is_in(name: str, other: str) -> bool:
    return not other or name == other or name.startswith(f"{other}.")


def _no_layer(pattern: str, names: Collection[str]) -> str:
    """Say that there is no such layer, and what there is."""
    plain = pattern.strip("*?")
    close = difflib.get_close_matches(plain, [name for name in names if name], n=3, cutoff=0.5)
    close = close or [name for name in names if plain and plain.lower() in name.lower()][:3]
    if close:
        return f"the model has no layer {pattern!r} (did you mean {' or '.join(close)}?)"
    top = [name for name in names if name and "." not in name]
    return f"the model has no layer {pattern!r}; there are: {', '.join(top)}, and what is inside them"
