"""FIRE: at the start of an experience, replace every weight matrix by the nearest orthogonal one, scaled.

An orthogonal matrix passes every direction on at the same strength, so gradients reach all of them again; the nearest
one keeps as much as it can of what was learned. It is found by Newton-Schulz iterations, X <- 1.5 X - 0.5 X X^T X from
X = W / ||W||_F, which move every singular value towards 1. Ten of them, as in the source, bring singular values to 1
that are above about 2% of ||W||_F; smaller ones grow by up to 1.5^10. The result is scaled by sqrt(out / in), and for
a kernel, each position of which is a matrix of its own, also by one over the number of positions.

In a network with attention only query and key projections change, as in the source, whose other layers did worse with
it there.

Source: "FIRE", arXiv 2602.08040, and its official code. Where that takes a grouped convolution for one matrix, here
each group is one, since no other map is orthogonal; a matrix of zeros, which turns into NaN there, stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from plasticity.errors import UserError
from plasticity.methods.parameters import WEIGHT_KINDS, Entry, as_matrices, from_matrices, trainable
from plasticity.methods.whole_weights import OptimizerState, check_optimizer_state
from plasticity.values import check_count, in_range

Layers = Literal["auto", "all", "attention"]
_QUERIES_AND_KEYS = {"to_q", "to_k", "q_proj", "k_proj", "query", "key", "wq", "wk"}
_JOINT = {"qkv", "to_qkv", "qkv_proj"}


@dataclass(frozen=True)
class FIRERule:
    """How weights are made orthogonal.

    Attributes:
        iterations: Newton-Schulz iterations.
        strength: Share of the orthogonal matrix in the result, in [0, 1].
        layers: "all" weights; "attention", queries and keys alone; "auto", these where there are any, else all.
        optimizer_state: "clear", as the source does, or "keep".
    """

    iterations: int = 10
    strength: float = 1.0
    layers: Layers = "auto"
    optimizer_state: OptimizerState = "clear"

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations)
        in_range("strength", self.strength, 0, 1)
        if self.layers not in get_args(Layers):
            raise UserError(f"unknown layers {self.layers!r}; there are: {', '.join(get_args(Layers))}")
        check_optimizer_state(self.optimizer_state)


PRESETS: dict[str, FIRERule] = {"default": FIRERule()}


def orthogonalise(matrices: Tensor, iterations: int = 10) -> Tensor:
    """Move the singular values of matrices towards 1 and keep their singular vectors.

    Args:
        matrices: (..., out, in).
        iterations: Newton-Schulz iterations.

    Returns:
        Of the same shape and type; computed in float32 at least.
    """
    wide = torch.promote_types(matrices.dtype, torch.float32)
    x = matrices.to(wide)
    turned = x.shape[-1] > x.shape[-2]
    if turned:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=torch.finfo(wide).tiny)
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ (x.mT @ x)
    found: Tensor = (x.mT if turned else x).to(matrices.dtype)
    return found


def fire(
    model: nn.Module, rule: FIRERule = PRESETS["default"], spared: frozenset[Tensor] = frozenset()
) -> Sequence[Entry]:
    """Make the weights of a network orthogonal, in place.

    Args:
        model: The network.
        rule: How, and which.
        spared: Parameters that are left alone.

    Returns:
        The parameters changed.
    """
    weights = [entry for entry in trainable(model, WEIGHT_KINDS, spared) if entry.parameter.dim() >= 2]
    attention = [(entry, parts) for entry in weights if (parts := _query_and_key_rows(entry))]
    chosen: list[tuple[Entry, list[slice]]] = [(entry, [slice(None)]) for entry in weights]
    if rule.layers == "attention" or (rule.layers == "auto" and attention):
        chosen = attention
    with torch.no_grad():
        for entry, parts in chosen:
            matrices = as_matrices(entry).clone()
            for rows in parts:
                part = matrices[..., rows, :]
                scale = (part.shape[-2] / part.shape[-1]) ** 0.5 / len(matrices)
                target = orthogonalise(part, rule.iterations) * scale
                part.copy_(target if rule.strength == 1 else torch.lerp(part, target, rule.strength))
            entry.parameter.copy_(from_matrices(entry, matrices))
    return [entry for entry, _ in chosen]


def _query_and_key_rows(entry: Entry) -> list[slice]:
    """Return which rows of a weight are a query's or a key's projection, one slice for each."""
    if isinstance(entry.module, nn.MultiheadAttention):
        if entry.key == "in_proj_weight":
            width = len(entry.parameter) // 3
            return [slice(width), slice(width, 2 * width)]
        return [slice(None)] if entry.key in ("q_proj_weight", "k_proj_weight") else []
    if not isinstance(entry.module, nn.Linear):
        return []
    own = entry.name.removesuffix("weight").rstrip(".").rpartition(".")[2]
    if own in _JOINT and len(entry.parameter) % 3 == 0:
        width = len(entry.parameter) // 3
        return [slice(width), slice(width, 2 * width)]
    return [slice(None)] if own in _QUERIES_AND_KEYS else []
