"""Arguments of plugins that replace single values of a method's rule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from plasticity.errors import UserError
from plasticity.values import shown

Rule = TypeVar("Rule")


def change_rule(plugin: object, rule: Rule, changes: Mapping[str, Any], *, hidden: tuple[str, ...] = ()) -> Rule:
    """Return a rule with some of its values replaced.

    Args:
        plugin: The plugin whose arguments they are, for the message.
        rule: A dataclass.
        changes: New values by name.
        hidden: Values that are not offered by name.

    Raises:
        UserError: If a value's name is unknown, or a value has no meaning.
    """
    known = [name for name in getattr(rule, "__dataclass_fields__", {}) if name not in hidden]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        offered = ", ".join(dict.fromkeys([*known, *_named(type(plugin))]))
        raise UserError(f"{type(plugin).__name__} has no argument {unknown[0]!r}; there are: {offered}")
    return type(rule)(**{**vars(rule), **changes})


def _named(kind: type) -> list[str]:
    """Return the arguments that a plugin takes by name beside those of its rule."""
    parameters = inspect.signature(kind).parameters.values()
    return [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]


def choose_rule(plugin: object, presets: Mapping[str, Rule], preset: str, changes: Mapping[str, Any]) -> Rule:
    """Return a preset with some of its values replaced.

    Raises:
        UserError: If the preset or a value's name is unknown, or a value has no meaning.
    """
    if not isinstance(preset, str) or preset not in presets:
        raise UserError(f"unknown preset {shown(preset)}; there are: {', '.join(presets)}")
    return change_rule(plugin, presets[preset], changes)
