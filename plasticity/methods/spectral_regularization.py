"""Spectral regularisation: keep the largest singular value of every weight matrix near 1.

The loss gains strength * sum over layers of (sigma(W)^k - 1)^2 + ||b||^(2k), with k = 2 and sigma the largest singular
value. A convolution counts as the matrix (out, in x kernel). A normaliser's scale is a diagonal matrix, whose largest
singular value is its largest absolute entry; its shift is a bias. sigma = u^T W v, whose gradient is u v^T, comes from
one step of power iteration at every update, from vectors that are kept and follow the weights.

Source: Lewandowski et al. 2025, "Learning Continually by Spectral Regularization", arXiv 2406.06811. The exponent of
the bias term follows a survey, as the text was not at hand; with k = 2 it is ||b||^4, which leaves small biases alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plasticity.methods.parameters import Entry
from plasticity.values import check_count, check_flag, in_range


@dataclass(frozen=True)
class SpectralRule:
    """What is penalised.

    Attributes:
        strength: Of the penalty; 0 leaves everything untouched.
        power: The exponent k, at least 1.
        biases: Whether biases and shifts are penalised.
        normalisers: Whether scales of normalisers are.
    """

    strength: float = 1e-3
    power: int = 2
    biases: bool = True
    normalisers: bool = True

    def __post_init__(self) -> None:
        in_range("strength", self.strength)
        check_count("power", self.power)
        for name in ("biases", "normalisers"):
            check_flag(name, getattr(self, name))

    def role(self, entry: Entry) -> str | None:
        """Return as what a parameter counts: "matrix", "diagonal", "bias", or None."""
        if entry.kind == "weight":
            return "matrix" if entry.parameter.dim() >= 2 else None
        if entry.kind == "norm" and entry.key == "weight":
            return "diagonal" if self.normalisers else None
        if entry.kind in ("bias", "norm") and entry.key.startswith(("bias", "in_proj_bias")):
            return "bias" if self.biases else None
        return None


PRESETS: dict[str, SpectralRule] = {"default": SpectralRule()}


def start_vector(entry: Entry, generator: torch.Generator, iterations: int = 20) -> Tensor:
    """Return the leading left singular vector of a weight, nearly, (out,).

    Args:
        entry: A weight of two or more dimensions.
        generator: Of the CPU, where the first guess comes from.
        iterations: Steps of power iteration.
    """
    weight = entry.parameter.detach()
    matrix = weight.reshape(len(weight), -1)
    u = torch.randn(len(weight), generator=generator).to(matrix)
    for _ in range(iterations):
        u = _unit(matrix @ _unit(matrix.mT @ u))
    return u


def add_spectral_gradient(
    entries: Sequence[Entry], vectors: Mapping[str, Tensor], rule: SpectralRule, scale: Tensor
) -> None:
    """Add the penalty's gradient to the gradients that parameters hold; those without one are left alone.

    Args:
        entries: The parameters.
        vectors: By qualified name of each weight its left singular vector (out,), which takes one step in place.
        rule: What is penalised.
        scale: 0-dim, by which the loss was multiplied before the backward pass.
    """
    with torch.no_grad():
        factor = 2 * rule.strength * rule.power * scale
        used: dict[str | None, list[Entry]] = {"matrix": [], "diagonal": [], "bias": []}
        for entry in entries:
            if entry.parameter.grad is not None and entry.parameter.numel() > 0:
                used.setdefault(rule.role(entry), []).append(entry)
        if used["matrix"]:
            _add_of_matrices(used["matrix"], vectors, rule.power, factor)
        if used["diagonal"]:
            _add_of_diagonals(used["diagonal"], rule.power, factor)
        if used["bias"]:
            _add_of_biases(used["bias"], rule.power, factor)


def _add_of_matrices(entries: Sequence[Entry], vectors: Mapping[str, Tensor], power: int, factor: Tensor) -> None:
    matrices = [entry.parameter.detach().flatten(1) for entry in entries]
    left = [vectors[entry.name] for entry in entries]
    right = _units([matrix.mT @ u for matrix, u in zip(matrices, left, strict=True)])
    images = [matrix @ v for matrix, v in zip(matrices, right, strict=True)]
    torch._foreach_copy_(left, _units(images))
    sigmas = [u @ image for u, image in zip(left, images, strict=True)]
    for gradient, slope, u, v in zip(_gradients(entries), _slopes(sigmas, power, factor), left, right, strict=True):
        gradient.add_(torch.outer((slope * u).to(u.dtype), v).view_as(gradient))


def _add_of_diagonals(entries: Sequence[Entry], power: int, factor: Tensor) -> None:
    values = [entry.parameter.detach().flatten() for entry in entries]
    places = [value.abs().argmax(keepdim=True) for value in values]
    largest = [value[place] for value, place in zip(values, places, strict=True)]
    slopes = _slopes(list(torch._foreach_abs(largest)), power, factor)
    signed = torch._foreach_mul(slopes, torch._foreach_sign(largest))
    for gradient, place, slope in zip(_gradients(entries), places, signed, strict=True):
        gradient.view(-1).index_add_(0, place, slope.to(gradient.dtype))


def _add_of_biases(entries: Sequence[Entry], power: int, factor: Tensor) -> None:
    values: list[Tensor] = [entry.parameter.detach() for entry in entries]
    lengths = torch._foreach_norm(values)
    factors = torch._foreach_mul(torch._foreach_pow(lengths, 2 * power - 2), factor)
    torch._foreach_add_(_gradients(entries), torch._foreach_mul(values, factors))


def _gradients(entries: Sequence[Entry]) -> list[Tensor]:
    return [gradient for entry in entries if (gradient := entry.parameter.grad) is not None]


def _slopes(sigmas: list[Tensor], power: int, factor: Tensor) -> list[Tensor]:
    """Return factor * (sigma^k - 1) * sigma^(k - 1) for each."""
    distances = torch._foreach_sub(torch._foreach_pow(sigmas, power), 1)
    return list(torch._foreach_mul(torch._foreach_mul(distances, factor), torch._foreach_pow(sigmas, power - 1)))


def spectral_penalty(entries: Sequence[Entry], rule: SpectralRule) -> Tensor:
    """Return the penalty, 0-dim, with exact singular values; arguments as in `add_spectral_gradient`."""
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for entry in entries:
            value, role = entry.parameter.detach().cpu().double(), rule.role(entry)
            if role is None or value.numel() == 0:
                continue
            if not bool(value.isfinite().all()):
                return total + float("nan")
            if role == "bias":
                total += torch.linalg.vector_norm(value) ** (2 * rule.power)
                continue
            matrix = value.reshape(len(value), -1)
            sigma = torch.linalg.matrix_norm(matrix, 2) if role == "matrix" else value.abs().max()
            total += (sigma**rule.power - 1) ** 2
    return rule.strength * total


def _unit(vector: Tensor) -> Tensor:
    return _units([vector])[0]


def _units(vectors: list[Tensor]) -> list[Tensor]:
    """Return vectors over their lengths."""
    lengths = torch._foreach_norm(vectors)
    torch._foreach_clamp_min_(lengths, [torch.finfo(vector.dtype).tiny for vector in vectors])
    return list(torch._foreach_div(vectors, lengths))
