"""What the plugins of a strategy have removed from its network for good: it stays removed, whoever changes weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from plasticity.groups import unwrap
from plasticity.methods.demon_masks import PrunedUnits, kept_at_zero
from plasticity.surgery.masks import Masks


def removed_by(strategy: Any) -> tuple[Masks | PrunedUnits, ...]:
    """Return what the plugins of a strategy keep at 0."""
    return kept_at_zero(strategy.plugins)


def still_removed(strategy: Any) -> tuple[Masks | PrunedUnits, ...]:
    """Return those of them that hold in the present model: not what belongs to another that it has replaced."""
    present = dict(unwrap(strategy.model).named_modules())
    return tuple(
        removed
        for removed in removed_by(strategy)
        if all(name in present for name in _layers(removed)) and not removed.disturbed(strategy.model)
    )


def _layers(removed: Masks | PrunedUnits) -> list[str]:
    if isinstance(removed, Masks):
        return list(removed)
    return [*removed.masks, *(name.rpartition(".")[0] for name in removed.vectors)]


def keep_removed(strategy: Any) -> None:
    """Set to 0 again what plugins have removed, wherever these stand among the plugins."""
    for removed in removed_by(strategy):
        removed.apply(strategy.model)


def removed_units(strategy: Any) -> dict[str, Tensor]:
    """Return the units that plugins have removed but that are still in place, (size,) bool by group name.

    As long as one plugin removes units of a group, and no more of them, the tensor is the same object.
    """
    found: dict[str, Tensor] = {}
    for plugin in strategy.plugins:
        pruned = getattr(plugin, "pruned", None)
        if pruned is None:
            continue
        units = pruned.units if isinstance(pruned, PrunedUnits) else pruned
        for name, mask in units.items() if isinstance(units, Mapping) else ():
            before = found.get(name)
            found[name] = mask if before is None or len(before) != len(mask) else before | mask
    return found
