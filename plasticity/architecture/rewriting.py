"""What all changes of an architecture share: a copy, what stands where in it, and a report."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, unwrap
from plasticity.tracing.preserve import preserved
from plasticity.units import find_units

Example = Tensor | tuple[Any, ...]
_CHANGES = "_architecture_changes"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """What was done to an architecture.

    Attributes:
        name: Such as "layer-norm".
        parameters_before: Numbers that were trained before.
        parameters_after: And after.
        details: In words.
    """

    name: str
    parameters_before: int
    parameters_after: int
    details: str

    def __str__(self) -> str:
        share = (self.parameters_after - self.parameters_before) / max(self.parameters_before, 1)
        return (
            f"{self.name}: {self.details}; {self.parameters_before} parameters before, "
            f"{self.parameters_after} after ({share:+.2%})"
        )


def changes(model: nn.Module) -> tuple[Change, ...]:
    """Return what was done to the architecture of a network, in order.

    Args:
        model: A network that a function of this package returned, or any other.
    """
    found: tuple[Change, ...] = vars(unwrap(model)).get(_CHANGES, ())
    return found


def note(model: nn.Module, name: str, before: nn.Module | int, details: str) -> None:
    """Note a change at the network and tell it to the log.

    Args:
        model: The network after the change.
        name: Of the change.
        before: The network before it, or the number of its trained parameters.
        details: In words.
    """
    count = before if isinstance(before, int) else parameter_count(before)
    change = Change(name, count, parameter_count(model), details)
    vars(model)[_CHANGES] = (*changes(model), change)
    _log.info("%s", change)


def parameter_count(model: nn.Module) -> int:
    """Count the numbers that are trained.

    Args:
        model: The network; a parameter that is used twice counts once.
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def units_and_copy(model: nn.Module, example: Example) -> tuple[UnitGroups, nn.Module]:
    """Find the hidden units of a network, and copy it.

    Args:
        model: The network.
        example: As for `find_units`.

    Raises:
        UserError: If it has no hidden units, or some that cannot be followed.
    """
    units = find_units(model, example)
    if len(units) == 0:
        raise UserError(f"the model ({type(unwrap(model)).__name__}) has no hidden units to change")
    if units.skipped:
        raise UserError(f"the model ({type(unwrap(model)).__name__}) cannot be changed: {units.skipped[0]}")
    return units, copy.deepcopy(unwrap(model))


def activation_module(model: nn.Module, group: UnitGroup, also: type[nn.Module] | None = None) -> nn.Module:
    """Return the module that activates a group.

    Args:
        model: The network.
        group: A group of it.
        also: A kind of module that counts although it calls a function for its activation.

    Raises:
        UserError: If the activation is a function called in a forward pass, which no change of modules can reach.
    """
    site = group.site
    name = group.at if site is None else site.module
    module = model.get_submodule(name or "")
    if site is not None and site.function and not (also is not None and isinstance(module, also)):
        where = f"in `{name}`" if name else "in the model's own forward"
        raise UserError(
            f"the {group.activation} of `{group.name}` is a function called {where} ({type(module).__name__}) and "
            "cannot be exchanged; make it a module, such as nn.ReLU()"
        )
    return module


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in place of another, wherever the model holds it.

    Args:
        model: The network.
        old: A module of it.
        new: What is to stand there.
    """
    for parent in list(model.modules()):
        if parent is new:  # it may hold the old one
            continue
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def check_outputs(model: nn.Module, before: nn.Module, example: Example, name: str) -> None:
    """Make sure that a changed network runs and gives outputs of the shape it gave before.

    Args:
        model: The network after the change.
        before: The network before it.
        example: Positional inputs.
        name: Of the change.

    Raises:
        UserError: If it does not run, or the shapes differ.
    """
    expected = _run(unwrap(before), example)
    try:
        shape = _run(model, example)
    except Exception as error:
        raise UserError(f"{name}: the changed network does not run: {error}") from error
    if shape != expected:
        raise UserError(f"{name}: the changed network gives outputs of shape {shape} in place of {expected}")


def _run(model: nn.Module, example: Example) -> Any:
    inputs = example if isinstance(example, tuple) else (example,)
    with preserved(model), torch.no_grad():
        output = model(*inputs)
    return tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
