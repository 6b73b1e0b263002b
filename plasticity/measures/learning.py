"""How well a network still learns: against networks trained from scratch, and within one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plasticity.errors import UserError

Accuracies = Sequence[float] | Sequence[Sequence[float]] | Tensor
"""T accuracies, or a T x T matrix of them: row i after training on experience i, column j on experience j."""


def trainability_gap(accuracies: Accuracies, scratch: Accuracies) -> Tensor:
    """Return how far a network stays behind networks trained from scratch, for each experience.

    Both are measured just after training on the experience, on its own data, and both are to have had the same budget.
    Above 0, the network has lost plasticity; below 0, what it has learned before helps it. The mean over the last
    experiences of a stream is one number; the last entry alone is the definition of the source.

    `plasticity.metrics.learning_accuracies` reads such accuracies from what Avalanche's `strategy.eval` returns.

    Args:
        accuracies: Of the network that learns one experience after the other: (T,), entry i its accuracy on experience
            i just after training on it; or (T, T), of which the diagonal is taken. Any unit, such as percent.
        scratch: Of networks that have learned nothing before: (T,), entry i the accuracy on experience i of a network
            trained on it alone; or (T, T) likewise. The same unit.

    Returns:
        (T,) float64 on the CPU, `scratch` - `accuracies`, NaN where either is.

    Raises:
        UserError: If one is neither (T,) nor (T, T) with the same T of at least 1.

    Source: Klein et al. 2024, arXiv 2411.04832.
    """
    learned, reference = _learning("accuracies", accuracies), _learning("scratch", scratch)
    if len(learned) != len(reference):
        raise UserError(f"accuracies are of {len(learned)} experiences, and scratch of {len(reference)}")
    return reference - learned


def sample_plasticity(before: Tensor, after: Tensor, smallest: float = 1e-8) -> Tensor:
    """Return max(1 - after / max(before, smallest), 0): the share of a loss that one step takes away.

    0 where the step did not help, 1 where it took all of the loss away.

    Args:
        before: Loss just before the step, of any shape, 0 or more.
        after: Loss on the same samples just after it, of the same shape.
        smallest: What stands for a smaller loss before, above 0; the paper leaves the value open.

    Returns:
        Of the shape of the losses, between 0 and 1; NaN where a loss is.

    Raises:
        UserError: If `smallest` is not above 0.

    Source: Elsayed and Mahmood, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning", ICLR
    2024, section 3.
    """
    if not smallest > 0:
        raise UserError(f"smallest must be above 0, not {smallest}")
    return (1 - after / before.clamp(min=smallest)).clamp(min=0)


def _learning(name: str, accuracies: Accuracies) -> Tensor:
    try:
        values = torch.as_tensor(accuracies, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} must be numbers, one for each experience or a square matrix ({error})") from None
    if values.dim() == 2 and values.shape[0] == values.shape[1]:
        values = values.diagonal()
    if values.dim() != 1 or len(values) == 0:
        raise UserError(f"{name} must be one number for each experience or a square matrix, not {tuple(values.shape)}")
    return values.clone()
