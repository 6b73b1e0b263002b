"""L2 regularisation, the plain control: add strength * ||theta||^2 to the loss.

The term is part of the loss, so that it passes through momentum and Adam's normalisation (AdamW's weight decay does
not). Normalisers are left out: their scales belong near 1, not 0.

Source: the baseline of Kumar, Marklund and Van Roy 2023, arXiv 2308.11958, whose tables have the strength 1e-2 on three
benchmarks of four. Their code halves the term: `PRESETS["kumar2023"]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plasticity.methods.parameters import total_norm

PRESETS: dict[str, float] = {"default": 1e-2, "kumar2023": 5e-3}
"""Strengths by name."""


def add_l2_gradient(
    parameters: Sequence[nn.Parameter], targets: Sequence[Tensor] | None, strength: float, scale: Tensor
) -> None:
    """Add the gradient of strength * ||theta - target||^2 to the gradients that parameters hold.

    A parameter without a gradient takes no part in the present loss, as the heads of other tasks, and stays as it is.
    Without that, Adam would carry idle heads to their target at full speed, since nothing else would move them.

    Args:
        parameters: The parameters.
        targets: Where each is pulled to, of its shape; None: to 0.
        strength: Of the penalty.
        scale: 0-dim, by which the loss was multiplied before the backward pass.
    """
    used = [number for number, parameter in enumerate(parameters) if parameter.grad is not None]
    if not used:
        return
    with torch.no_grad():
        values: list[Tensor] = [parameters[number].detach() for number in used]
        gradients = [gradient for number in used if (gradient := parameters[number].grad) is not None]
        if targets is None:
            pull = list(torch._foreach_mul(values, scale))
        else:
            pull = list(torch._foreach_sub(values, [targets[number] for number in used]))
            torch._foreach_mul_(pull, scale)
        torch._foreach_add_(gradients, pull, alpha=2 * strength)


def l2_penalty(parameters: Sequence[nn.Parameter], targets: Sequence[Tensor] | None, strength: float) -> Tensor:
    """Return strength * ||theta - target||^2, 0-dim; arguments as in `add_l2_gradient`."""
    with torch.no_grad():
        values: list[Tensor] = [parameter.detach() for parameter in parameters]
        if targets is not None:
            values = list(torch._foreach_sub(values, list(targets)))
        return strength * total_norm(values).square()
