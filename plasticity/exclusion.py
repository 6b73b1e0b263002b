"""Layers that are left alone, by name or frozen: no method writes to their parameters, buffers or optimizer state.

A unit is treated only where that writes to none of them. So units that such a layer writes are not, and neither are
those with such a normaliser behind them. Where such a layer reads a unit, its columns belong to that layer: nothing may
be changed that needs its outgoing weights to change, and the unit counts as not private.

A layer is frozen if any of its own parameters is (`requires_grad` is False): then its units are not to change. Units
are not treated either where the weight that writes them is computed from other parameters, as by weight normalisation:
these have no row for a unit. Methods on whole weights leave single frozen parameters alone, see `methods.parameters`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from plasticity.errors import UserError
from plasticity.groups import WEIGHT_LAYERS, UnitGroup, UnitGroups, unwrap

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
        """Return parameters and buffers of excluded modules, frozen parameters, and buffers of frozen modules."""
        modules = dict(unwrap(model).named_modules(remove_duplicate=False))
        found = {tensor for name in self.layers(model) for tensor in _own(modules[name])}
        for module in modules.values():
            own = list(module.parameters(recurse=False))
            found.update(parameter for parameter in own if not parameter.requires_grad and not is_lazy(parameter))
            if own and not any(parameter.requires_grad for parameter in own):
                found.update(_own(module))
        return frozenset(found)

    def untouched(self, model: nn.Module) -> dict[str, str]:
        """Return the qualified names of the layers that are left alone, and what they are: excluded, or frozen."""
        modules = unwrap(model).named_modules(remove_duplicate=False)
        frozen = {name: "frozen" for name, module in modules if _is_frozen(module)}
        return frozen | dict.fromkeys(self.layers(model), "excluded")

    def treatable(self, model: nn.Module, units: UnitGroups) -> UnitGroups:
        """Return the groups that may be treated, those with an excluded reader as not private.

        Args:
            model: The network.
            units: Its groups.
        """
        layers, alone = self.untouched(model), self.left_alone(model, units)
        if not layers and not alone:
            return units
        found = []
        for group in units:
            reader = next((each.layer for each in group.readers if each.layer in layers), None)
            if group.name in alone:
                continue
            if group.private and reader is not None:
                group = replace(group, private=False, reason=f"`{reader}`, which reads it, is {layers[reader]}")
            found.append(group)
        return UnitGroups(found, skipped=units.skipped, outputs=units.outputs)

    def left_alone(self, model: nn.Module, units: UnitGroups) -> dict[str, str]:
        """Return why groups are missing among the treatable ones, in words, by name."""
        layers = self.untouched(model)
        modules = dict(unwrap(model).named_modules(remove_duplicate=False))
        found = {group.name: _why_alone(group, layers, modules) for group in units}
        return {name: reason for name, reason in found.items() if reason is not None}


def _why_alone(group: UnitGroup, layers: Mapping[str, str], modules: Mapping[str, nn.Module]) -> str | None:
    """Say which layer that writes a group, or normalises it, is left alone; None: none is."""
    names = [name for write in group.writes for name in (write.layer, write.norm) if name is not None]
    for name in (*names, *group.producers):
        if name in layers:
            return f"`{name}`, which writes it, is {layers[name]}"
    for write in group.writes:
        module = modules.get(write.layer)
        if isinstance(module, WEIGHT_LAYERS) and not isinstance(getattr(module, "weight", None), nn.Parameter):
            return f"the weight of `{write.layer}`, which writes it, is computed from other parameters"
    return None


def _is_frozen(module: nn.Module) -> bool:
    return any(not parameter.requires_grad for parameter in module.parameters(recurse=False))


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
