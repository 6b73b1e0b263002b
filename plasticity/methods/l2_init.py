"""L2 Init, regenerative regularisation: add strength * ||theta - theta_0||^2 to the loss.

Weights that the present data do not need return to their initial values, from which a network learns well; plain L2
pulls them to 0 instead, where units die. The term is part of the loss, so it passes through momentum and Adam.

Source: Kumar, Marklund and Van Roy 2023, arXiv 2308.11958; strength 1e-2 is the best value of their tables on most
benchmarks with Adam. Their code halves the term, `PRESETS["kumar2023"]`, and leaves out normalisers, as here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from plasticity.methods.l2 import add_l2_gradient, l2_penalty

PRESETS: dict[str, float] = {"default": 1e-2, "kumar2023": 5e-3}
"""Strengths by name."""


def add_regenerative_gradient(
    parameters: Sequence[nn.Parameter], initial: Sequence[Tensor], strength: float, scale: Tensor
) -> None:
    """Add the gradient of strength * ||theta - theta_0||^2 to the gradients of parameters in use.

    Args:
        parameters: The parameters.
        initial: Their initial values, as `plasticity.methods.parameters.InitialValues` keeps them.
        strength: Of the penalty.
        scale: 0-dim, by which the loss was multiplied before the backward pass.
    """
    add_l2_gradient(parameters, initial, strength, scale)


def regenerative_penalty(parameters: Sequence[nn.Parameter], initial: Sequence[Tensor], strength: float) -> Tensor:
    """Return strength * ||theta - theta_0||^2, 0-dim; arguments as in `add_regenerative_gradient`."""
    return l2_penalty(parameters, initial, strength)
