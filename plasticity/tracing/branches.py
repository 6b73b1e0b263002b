"""Modules that run only some of their layers in one forward pass, such as a head for each task."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from plasticity.groups import WEIGHT_LAYERS

Branches = Callable[[nn.Module], list[str]]
_BRANCHES: dict[str, Branches] = {}


def register_branches(module_class: str) -> Callable[[Branches], Branches]:
    """Declare a module whose layers are alternatives that all read the module's first input along its last dimension.

    A single forward pass shows only the alternatives it takes. With this declaration every one of them counts as a
    reader of the units that reach the module.

    Args:
        module_class: Full name of the class, such as "package.module.Class"; subclasses count too.

    Returns:
        A decorator for a function that takes the module and returns the names of those layers, relative to it.
    """

    def register(function: Branches) -> Branches:
        _BRANCHES[module_class] = function
        return function

    return register


def branches_of(module: nn.Module) -> list[str]:
    """Return the alternative layers of a module, relative to it; empty for an ordinary module."""
    for kind in type(module).__mro__:
        function = _BRANCHES.get(f"{kind.__module__}.{kind.__qualname__}")
        if function is not None:
            return function(module)
    return []


@register_branches("avalanche.models.dynamic_modules.MultiHeadClassifier")
def _multi_head(module: nn.Module) -> list[str]:
    """A classifier for each task label, each with one Linear."""
    return [name for name, child in module.named_modules() if isinstance(child, WEIGHT_LAYERS)]
