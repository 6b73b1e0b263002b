"""DASH: at the start of an experience, shrink the weights that do not point where the new data want them to go.

Before any training on the new data their negative gradient is averaged over mini-batches,
d <- (1 - smoothing) d - smoothing * gradient. Then each weight vector w is multiplied by cos(w, d), clamped to
[threshold, 1]: what agrees with the new data stays, the rest, which memorised the old data, shrinks. A vector is a row
of a linear layer, the kernel between one input and one output channel of a convolution, or a bias as a whole.
Normalisers stay, and so does what the new data do not reach, such as the heads of other tasks.

Source: Shin et al. 2024, "DASH: Warm-Starting Neural Network Training in Stationary Settings without Loss of
Plasticity", arXiv 2410.23495, and its official code, with 0.3 and 0.3. The authors average over all data so far, which
their setting keeps; a stream has only the new data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plasticity.methods.parameters import LAYER_KINDS, Entry, trainable
from plasticity.methods.whole_weights import OptimizerState, check_optimizer_state
from plasticity.values import in_range


@dataclass(frozen=True)
class DASHRule:
    """How weights are shrunk.

    Attributes:
        threshold: Smallest factor, in [0, 1]; 1 leaves everything as it is.
        smoothing: Weight of a new mini-batch in the mean gradient, in (0, 1].
        optimizer_state: "clear" or "keep".
    """

    threshold: float = 0.3
    smoothing: float = 0.3
    optimizer_state: OptimizerState = "clear"

    def __post_init__(self) -> None:
        in_range("threshold", self.threshold, 0, 1)
        in_range("smoothing", self.smoothing, 1e-12, 1)
        check_optimizer_state(self.optimizer_state)


PRESETS: dict[str, DASHRule] = {"default": DASHRule()}


def descent_direction(model: nn.Module, losses: Iterable[Tensor], smoothing: float) -> dict[str, Tensor]:
    """Average the negative gradients of losses, the last ones most.

    Args:
        model: The network; its parameters' own gradients are left alone.
        losses: The loss of each mini-batch, 0-dim or of one element, computed when it is asked for.
        smoothing: Weight of a new mini-batch, in (0, 1].

    Returns:
        By qualified name of a weight or bias, of its shape; none for those that no loss has reached.
    """
    entries = trainable(model, LAYER_KINDS)
    direction: dict[str, Tensor] = {}
    for loss in losses:
        if not loss.requires_grad:
            continue
        found = torch.autograd.grad(loss.sum(), [entry.parameter for entry in entries], allow_unused=True)
        for entry, gradient in zip(entries, found, strict=True):
            if entry.name in direction:
                direction[entry.name].mul_(1 - smoothing)
            if gradient is not None:
                value = direction.setdefault(entry.name, torch.zeros_like(entry.parameter))
                value.sub_(gradient, alpha=smoothing)
    return direction


def shrink_by_direction(
    model: nn.Module, direction: Mapping[str, Tensor], threshold: float, spared: frozenset[Tensor] = frozenset()
) -> Sequence[Entry]:
    """Multiply each weight vector by its cosine with a direction, clamped to [threshold, 1], in place.

    Args:
        model: The network.
        direction: As `descent_direction` returns it.
        threshold: Smallest factor.
        spared: Parameters that are left alone.

    Returns:
        The parameters changed.
    """
    entries = [entry for entry in trainable(model, LAYER_KINDS, spared) if entry.name in direction]
    with torch.no_grad():
        for entry in entries:
            weight, wanted = _vectors(entry, entry.parameter), _vectors(entry, direction[entry.name])
            wide = torch.promote_types(weight.dtype, torch.float32)  # in half precision short vectors have no length
            factor = F.cosine_similarity(weight.to(wide), wanted.to(wide), dim=-1).clamp(threshold, 1)
            entry.parameter.mul_(factor.view(*factor.shape, *[1] * (entry.parameter.dim() - factor.dim())))
    return entries


def _vectors(entry: Entry, values: Tensor) -> Tensor:
    """Return a weight's vectors along the last dimension."""
    if entry.kind == "bias":
        return values.reshape(1, -1)
    return values if values.dim() == 2 else values.flatten(2)
