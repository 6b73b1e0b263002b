"""The same network with another activation."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from plasticity.architecture.rewriting import (
    Example,
    activation_module,
    check_outputs,
    note,
    replace,
    units_and_copy,
)
from plasticity.errors import UserError
from plasticity.tracing.functions import ACTIVATION_MODULES

_MODULES = {name: module for module, name in ACTIVATION_MODULES.items() if name != "threshold"}


def with_activation(
    model: nn.Module, example: Example, activation: str | Callable[[], nn.Module] = "leaky_relu"
) -> nn.Module:
    """Copy a network with another activation at all hidden units.

    Weights stay as they are; a parametric activation brings parameters of its own. Activations that are functions
    called in a forward pass cannot be exchanged.

    Args:
        model: The network.
        example: An input, or a tuple of its positional inputs; a few samples are enough.
        activation: Name such as "leaky_relu" (slope 0.01), "elu" or "tanh", with PyTorch's defaults; or a function
            that makes a module, such as `lambda: nn.LeakyReLU(0.1)`.

    Returns:
        A changed copy; `plasticity.architecture.changes` tells what was done.

    Raises:
        UserError: If the activation is unknown, or one of the model's is a function.
    """
    if isinstance(activation, str) and activation not in _MODULES:
        raise UserError(f"unknown activation {activation!r}; there are: {', '.join(sorted(_MODULES))}")
    make = _MODULES[activation] if isinstance(activation, str) else activation
    units, changed = units_and_copy(model, example)
    old = {id(module): module for module in (activation_module(changed, group) for group in units)}
    for module in old.values():
        replace(changed, module, make().train(module.training))
    check_outputs(changed, model, example, "activation")
    title = activation if isinstance(activation, str) else type(make()).__name__
    note(changed, "activation", model, f"{title} activates {sum(group.size for group in units)} units")
    return changed
