"""Normalize-and-project, the second half: after every update, give each weight matrix its initial norm again.

In a network with normalisers only the direction of a weight matters, and as its norm grows, the same step turns it
less: the learning rate decays unseen. W <- rho W / ||W||_F with rho the norm at the start undoes that. The first half,
a LayerNorm before every activation, is an architecture of its own. Biases stay as they are; scales and shifts of
normalisers may be drawn to their initial values by a share of the distance at each step.

Source: Lyle et al. 2024, "Normalization and Effective Learning Rates in Reinforcement Learning", arXiv 2407.01800.
The projection also takes away the hidden decay of the learning rate; the authors put a schedule in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plasticity.methods.parameters import lengths


def project(weights: Sequence[Tensor], squared_norms: Sequence[Tensor]) -> None:
    """Scale weights to given norms, in place; a weight of zeros stays.

    Args:
        weights: The weights.
        squared_norms: ||W||_F^2 that each is to have, 0-dim.
    """
    values = [weight.detach() for weight in weights]
    if not values:
        return
    with torch.no_grad():
        norms = lengths(values)
        torch._foreach_clamp_min_(norms, 1e-30)
        factors = torch._foreach_sqrt(list(squared_norms))
        torch._foreach_div_(factors, norms)
        torch._foreach_mul_(values, factors)


def draw_back(parameters: Sequence[Tensor], initial: Sequence[Tensor], share: float) -> None:
    """Move parameters towards their initial values by a share of the distance, in place."""
    if share > 0 and parameters:
        with torch.no_grad():
            torch._foreach_lerp_([parameter.detach() for parameter in parameters], list(initial), share)


def grown_norm(known: tuple[Tensor, torch.Size] | None, weight: Tensor) -> Tensor:
    """Return the squared norm that a weight is to keep, 0-dim.

    Args:
        known: What it was to keep so far, and the shape that it had then; None for a new weight.
        weight: The weight as it is.

    Returns:
        For a weight that has grown, what is known plus the squares of what is new; for a new one, or one that has
        shrunk, the squares of it all.
    """
    values = weight.detach()
    wide = torch.promote_types(values.dtype, torch.float32)
    total: Tensor = torch.linalg.vector_norm(values, dtype=wide).square()
    if known is None or len(known[1]) != values.dim():
        return total
    squares, shape = known[0].to(total), known[1]
    if any(old > new for old, new in zip(shape, values.shape, strict=True)):
        return total
    if shape == values.shape:
        return squares
    old = values[tuple(slice(length) for length in shape)]
    old_block = torch.linalg.vector_norm(old, dtype=wide).square()
    return squares + torch.clamp(total - old_block, min=0)
