"""Ranks of a feature matrix: how many directions the penultimate layer uses.

All of them are without unit and unchanged when the matrix is scaled: 0 for a zero matrix, NaN where an entry is
non-finite, else between 1 and the smaller side of the matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import LinAlgError

from plasticity.errors import UserError
from plasticity.measures.scalars import working_type


def effective_rank(features: Tensor) -> Tensor:
    """Return exp(-sum p ln p) with p = sigma / sum sigma over the singular values; not centred.

    Args:
        features: (samples, features) real matrix, at least one of each.

    Returns:
        0-dim, between 1 and min(samples, features); 0 for a zero matrix, NaN where an entry is non-finite.

    Raises:
        UserError: If `features` is no real, filled matrix.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    values = _singular_values(_matrix(features))
    total = values.sum()
    entropy = torch.special.entr(values / torch.where(total == 0, 1.0, total)).sum()
    return _like(torch.where(total == 0, 0.0, entropy.exp()), features)


def stable_rank(features: Tensor) -> Tensor:
    """Return ||A||_F^2 / ||A||_2^2, the sum of squared singular values over the largest square; not centred.

    It is linear algebra's stable rank; what Dohare et al. 2024 call so is `rank99`.

    Args:
        features: (samples, features) real matrix, at least one of each.

    Returns:
        0-dim, between 1 and min(samples, features); 0 for a zero matrix, NaN where an entry is non-finite.

    Raises:
        UserError: If `features` is no real, filled matrix.

    Source: Rudelson and Vershynin 2007, "Sampling from large matrices", arXiv math/0503442.
    """
    squares = _singular_values(_matrix(features)).square()
    return _like(squares.sum() / torch.where(squares[0] == 0, 1.0, squares[0]), features)


def rank99(features: Tensor, share: float = 0.99) -> Tensor:
    """Return the field's "99% rank": the least k whose k largest singular values reach `share` of the sum of all.

    Not squared, not centred. Known as srank with delta = 1 - `share` (Kumar et al., who also say "effective rank") and
    as "stable rank" (Dohare et al.). A sum within a relative 1e-12 of the share reaches it, so that rounding decides no
    tie.

    Args:
        features: (samples, features) real matrix, at least one of each.
        share: Share of the sum of singular values, above 0 and at most 1.

    Returns:
        0-dim, a whole number of directions, between 1 and min(samples, features), as a float since it may be NaN; 0
        for a zero matrix, NaN where an entry is non-finite.

    Raises:
        UserError: If `share` is not above 0 and at most 1, or `features` is no real, filled matrix.

    Source: Kumar et al. 2021, arXiv 2010.14498; Dohare et al. 2024, Nature 632.
    """
    if not 0 < share <= 1:
        raise UserError(f"share must be above 0 and at most 1, not {share}")
    sums = _singular_values(_matrix(features)).cumsum(0)
    short = (sums < share * sums[-1] * (1 - 1e-12)).sum()
    # In the other branch the last sum is 0 or NaN.
    return _like(torch.where(sums[-1] > 0, short + 1.0, sums[-1]), features)


def participation_ratio(features: Tensor, centred: bool = True) -> Tensor:
    """Return tr(C)^2 / tr(C^2) of the features' covariance C: how many principal directions share the variance.

    Args:
        features: (samples, features) real matrix, at least one of each.
        centred: False: C is the matrix of second moments instead.

    Returns:
        0-dim, between 1 and min(samples, features); 0 where nothing varies (centred: one sample, or equal rows; else a
        zero matrix), NaN where an entry is non-finite.

    Raises:
        UserError: If `features` is no real, filled matrix.

    Source: Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement".
    """
    matrix = _matrix(features)
    if centred:
        matrix = matrix - matrix[0]  # so that equal rows give exactly 0, which subtracting a rounded mean would not
        matrix = _scaled(matrix - matrix.mean(0))
    squares = _singular_values(matrix).square()
    total = squares.square().sum()
    return _like(squares.sum().square() / torch.where(total == 0, 1.0, total), features)


def _matrix(features: Tensor) -> Tensor:
    if not isinstance(features, Tensor) or features.dim() != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"a feature matrix must have two dimensions (samples, features), not {found}")
    if features.numel() == 0 or features.is_complex():
        raise UserError(f"a feature matrix must be real and not empty, not {features.dtype} {tuple(features.shape)}")
    matrix = features.detach()
    if working_type(matrix.device) is not torch.float64:
        matrix = matrix.cpu()  # a spectrum needs float64, and MPS decomposes on the CPU in any case
    return _scaled(matrix.to(torch.float64))


def _like(value: Tensor, features: Tensor) -> Tensor:
    return value.to(features.device, working_type(features.device))


def _scaled(matrix: Tensor) -> Tensor:
    """To a largest magnitude of 1: the squares of very large or small entries would overflow or vanish."""
    largest = matrix.abs().amax()
    return torch.div(matrix, torch.where(largest == 0, 1.0, largest))


def _singular_values(matrix: Tensor) -> Tensor:
    """Descending; all NaN where the matrix holds a non-finite entry, which never reaches the solver."""
    finite = torch.isfinite(matrix).all()
    clean = torch.where(finite, matrix, 0.0)
    try:
        values = torch.linalg.svdvals(clean)
    except LinAlgError:
        # No convergence. The Gram matrix's eigenvalues are the squares: exact to about 1e-8 of the largest value.
        gram = clean @ clean.T if clean.shape[0] < clean.shape[1] else clean.T @ clean
        values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()
    return torch.where(finite, values, torch.nan)
