"""Measures of plasticity: pure functions of unit statistics, of feature matrices and of models.

The field uses "dead", "dormant" and "stable rank" for several things each; a name here has the one meaning that its
docstring gives. What the functions share is said once, here:

- `stat` is the statistics of one group of `size` units; `stats` is those of a network, by group name, or of one group.
  Groups never observed (count 0) are left out of `stats`, and no mask marks a unit of theirs. UserError where there is
  no group, or none was observed.
- `features` is a real (N, d) matrix, a row per sample and a column per feature, at least one of each; UserError if it
  is anything else. The four ranks are 0-dim float64, without unit, and unchanged when the matrix is scaled: 0 for a
  zero matrix, NaN where an entry is non-finite, else between 1 and min(N, d).
- Of models, figures are 0-dim float64, for the whole or by the qualified name of the layer ("" is the model itself).

Results stay on the device of what is measured and nothing is read back to the host, except inside a singular value
decomposition, which on a GPU waits for its own result, and to gather a sparse gradient.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from plasticity.errors import UserError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class UnitCounts(Protocol):
    """What a measure reads from the statistics of one group of `size` units."""

    @property
    def fired(self) -> Tensor:
        """(size,) int64: samples x positions with activation > 0."""

    @property
    def count(self) -> int:
        """Samples x positions seen."""

    @property
    def mean(self) -> Tensor:
        """(size,) float64: mean activation over `count`."""

    @property
    def mean_abs(self) -> Tensor:
        """(size,) float64: mean magnitude of the activation over `count`."""


Statistics = UnitCounts | Mapping[str, UnitCounts]


def dead_units(stat: UnitCounts) -> Tensor:
    """Units whose activation was exactly 0 on everything seen (the sum of |h| is 0), as a (size,) bool mask.

    A unit with non-finite statistics is not dead. Source: Whitaker & Whitley 2023, arXiv 2302.05818.
    """
    return (stat.mean_abs == 0) & (stat.count > 0)


def dormant_units(stat: UnitCounts, tau: float = 0.025) -> Tensor:
    """Units whose mean |h| is at most `tau` times the average of that mean over the layer, as a (size,) bool mask.

    That is ReDo's score, mean |h| over the layer's mean (not sum) of it, against `tau` in 0..1. With `tau` 0 these are
    the dead units; in a layer that is all zero every unit is dormant. Units with non-finite statistics are not, and
    the layer's mean is over the others. Source: Sokar et al. 2023, arXiv 2302.12902, as the authors' code has it.

    Raises:
        UserError: `tau` is outside 0..1.
    """
    _check_fraction("tau", tau)
    finite = torch.isfinite(stat.mean_abs)
    layer_mean = torch.where(finite, stat.mean_abs, 0.0).sum() / finite.sum()
    scores = torch.where(layer_mean > 0, stat.mean_abs / layer_mean, 0.0)
    return finite & (scores <= tau) & (stat.count > 0)


def over_active_units(stat: UnitCounts, bound: float = 0.95) -> Tensor:
    """Units that fired (h > 0) on at least the share `bound` of samples x positions, as a (size,) bool mask.

    Counts alone decide, so a unit with a non-finite mean is judged like any other; NaN has not fired.

    Raises:
        UserError: `bound` is outside 0..1.
    """
    _check_fraction("bound", bound)
    # Dividing, rather than multiplying the bound, keeps "exactly the bound" exact: 19 of 20 is 0.95, correctly rounded.
    return (stat.fired.to(torch.float64) / max(stat.count, 1) >= bound) & (stat.count > 0)


def nonfinite_units(stat: UnitCounts) -> Tensor:
    """Units whose mean |h| is NaN or infinite, as a (size,) bool mask: diverged, so neither dead nor dormant."""
    return ~torch.isfinite(stat.mean_abs) & (stat.count > 0)


def dead_fraction(stats: Statistics) -> Tensor:
    """Share of `dead_units`, 0-dim float64 in 0..1: units are counted equally, so a wide layer weighs more."""
    return _fraction(dead_units, stats)


def dormant_fraction(stats: Statistics, tau: float = 0.025) -> Tensor:
    """Share of `dormant_units` by `tau`, 0-dim float64 in 0..1: units count equally, scores are within each layer.

    Raises:
        UserError: `tau` is outside 0..1, or nothing was observed.
    """
    return _fraction(lambda stat: dormant_units(stat, tau), stats)


def over_active_fraction(stats: Statistics, bound: float = 0.95) -> Tensor:
    """Share of `over_active_units` by `bound`, 0-dim float64 in 0..1: units are counted equally.

    Raises:
        UserError: `bound` is outside 0..1, or nothing was observed.
    """
    return _fraction(lambda stat: over_active_units(stat, bound), stats)


def nonfinite_fraction(stats: Statistics) -> Tensor:
    """Share of `nonfinite_units`, 0-dim float64 in 0..1; above 0, dead and dormant shares are lower bounds."""
    return _fraction(nonfinite_units, stats)


def by_layer(measure: Callable[..., Tensor], stats: Mapping[str, UnitCounts], **settings: float) -> dict[str, Tensor]:
    """Apply a measure of one group to each observed group, by name: `by_layer(dormant_fraction, stats, tau=0.1)`."""
    return {name: measure(stat, **settings) for name, stat in _observed(stats).items()}


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name} must be between 0 and 1, not {value}")


def _observed(stats: Statistics) -> dict[str, UnitCounts]:
    groups = stats if isinstance(stats, Mapping) else {"": stats}
    groups = {name: stat for name, stat in groups.items() if len(stat.mean_abs) > 0}
    if not groups:
        raise UserError("there are no hidden units to measure: the statistics hold no group")
    observed = {name: stat for name, stat in groups.items() if stat.count > 0}
    if not observed:
        raise UserError("no hidden unit was observed: run the model inside `watch` before measuring")
    return observed


def _fraction(mask: Callable[[UnitCounts], Tensor], stats: Statistics) -> Tensor:
    masks = [mask(stat) for stat in _observed(stats).values()]
    return _stack([each.sum() for each in masks]).sum().to(torch.float64) / sum(len(each) for each in masks)


def effective_rank(features: Tensor) -> Tensor:
    """exp(-sum p ln p) with p = sigma / sum sigma over the singular values; not centred.

    Source: Roy & Vetterli 2007, "The effective rank".
    """
    values = _singular_values(_matrix(features))
    total = values.sum()
    entropy = torch.special.entr(values / torch.where(total == 0, 1.0, total)).sum()
    return torch.where(total == 0, 0.0, entropy.exp())


def stable_rank(features: Tensor) -> Tensor:
    """||A||_F^2 / ||A||_2^2, the sum of squared singular values over the largest square; not centred.

    Linear algebra's stable rank (Rudelson & Vershynin 2007); what Dohare et al. 2024 call so is `rank99`.
    """
    squares = _singular_values(_matrix(features)).square()
    return squares.sum() / torch.where(squares[0] == 0, 1.0, squares[0])


def rank99(features: Tensor, share: float = 0.99) -> Tensor:
    """The field's "99% rank": the least k whose k largest singular values add up to at least `share` of their sum.

    Not squared, not centred. Known as srank with delta = 1 - `share` (Kumar et al. 2021, arXiv 2010.14498, who also
    say "effective rank") and as "stable rank" (Dohare et al. 2024, Nature 632). A whole number, in float64 as it may
    be NaN. A sum within a relative 1e-12 of the share reaches it, so that rounding decides no tie.

    Raises:
        UserError: `share` is not above 0 and at most 1, or `features` is no real, filled matrix.
    """
    if not 0 < share <= 1:
        raise UserError(f"share must be above 0 and at most 1, not {share}")
    sums = _singular_values(_matrix(features)).cumsum(0)
    short = (sums < share * sums[-1] * (1 - 1e-12)).sum()
    return torch.where(sums[-1] > 0, short + 1.0, sums[-1])  # the last sum is 0 or NaN in the other branch


def participation_ratio(features: Tensor, centred: bool = True) -> Tensor:
    """tr(C)^2 / tr(C^2) of the features' covariance C: how many principal directions share the variance.

    With `centred` False, C is the matrix of second moments. Centred, it is 0 where nothing varies: one sample, or
    equal rows. Source: Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement".
    """
    matrix = _matrix(features)
    if centred:
        matrix = matrix - matrix[0]  # so that equal rows give exactly 0, which subtracting a rounded mean would not
        matrix = _scaled(matrix - matrix.mean(0))
    squares = _singular_values(matrix).square()
    total = squares.square().sum()
    return squares.sum().square() / torch.where(total == 0, 1.0, total)


def _matrix(features: Tensor) -> Tensor:
    if not isinstance(features, Tensor) or features.dim() != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"a feature matrix must have two dimensions (samples, features), not {found}")
    if features.numel() == 0 or features.is_complex():
        raise UserError(f"a feature matrix must be real and not empty, not {features.dtype} {tuple(features.shape)}")
    return _scaled(features.detach().to(torch.float64))


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


def weight_magnitude(model: nn.Module) -> Tensor:
    """Mean |w| over all weights of linear, convolution and attention layers, each weight counted equally.

    Counted are the weights of Linear, Conv1d-3d and ConvTranspose1d-3d, and MultiheadAttention's input projections,
    frozen ones and heads included; one that several layers share counts once; where a weight is parametrised or
    masked, the one it computes with. Not counted: biases, normalisations, embeddings, recurrent layers.
    Source: Dohare et al. 2024, Nature 632.

    Raises:
        UserError: The model has no such weight, or a lazy one that no forward pass has given a shape.
    """
    sums = list(_absolute_sums(model).values())
    if not sums:
        raise UserError(f"{type(model).__name__} has no linear or convolution layer whose weights could be measured")
    return _stack([total for total, _ in sums]).sum() / sum(count for _, count in sums)


def weight_magnitude_by_layer(model: nn.Module) -> dict[str, Tensor]:
    """`weight_magnitude` of each layer that has such weights; one that several layers share is under the first."""
    return {name: total / count for name, (total, count) in _absolute_sums(model).items()}


def distance_from_initialisation(model: nn.Module, initial: Mapping[str, Tensor]) -> Tensor:
    """||W - W0||_2 over all parameters taken as one vector, biases and normalisations included.

    `initial` holds the initial values by qualified parameter name, such as a cloned state_dict; on another device they
    are copied at each call. Parameters that appeared since, or grew to another shape, are left out: they have no
    initial value. Source: Kumar et al. 2023, arXiv 2308.11958 (the penalty of L2 Init is its square).

    Raises:
        UserError: No parameter is in `initial`, or `initial` holds the live parameters, which move with the model.
    """
    distances = distance_by_layer(model, initial)
    if not distances:
        raise UserError(f"no parameter of {type(model).__name__} is in the initial values with the same shape")
    return _norm(_stack(distances.values()), 2)


def distance_by_layer(model: nn.Module, initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`distance_from_initialisation` by layer, each over its own parameters; those without an initial one left out."""
    norms: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        before = initial.get(name)
        if before is None or is_lazy(parameter) or before.shape != parameter.shape:
            continue
        if before.data_ptr() == parameter.data_ptr() != 0:
            raise UserError(f"the initial value of {name} is the live parameter itself: clone it when the run begins")
        now = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float64))
        norms[_layer(name)].append(_norm(now - before.detach().to(now), 2))
    return {name: _norm(_stack(each), 2) for name, each in norms.items()}


def gradient_norm(model: nn.Module) -> Tensor:
    """L2 norm of the gradients that the parameters hold now, taken as one vector; 0 where there are none.

    They are taken as they stand: accumulated, clipped or not, and times a gradient scaler's scale until unscaled.
    """
    norms = gradient_norm_by_layer(model).values()
    return _norm(_stack(norms), 2) if norms else torch.zeros((), dtype=torch.float64)


def gradient_norm_by_layer(model: nn.Module) -> dict[str, Tensor]:
    """`gradient_norm` of every layer with parameters of its own; 0 where it has no gradient."""
    norms: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        nothing = torch.zeros((), dtype=torch.float64, device=parameter.device)
        norms[_layer(name)].append(nothing if parameter.grad is None else _norm(parameter.grad, 2))
    return {name: _norm(_stack(each), 2) for name, each in norms.items()}


def _absolute_sums(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    weights: dict[str, list[Tensor]] = defaultdict(list)
    for name, weight in _weights(model):
        weights[name].append(weight)
    return {
        name: (_stack(_norm(each, 1) for each in own).sum(), sum(each.numel() for each in own))
        for name, own in weights.items()
    }


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen: list[Tensor] = []
    for name, module in model.named_modules():
        names = ("weight",) if isinstance(module, (nn.Linear, *_CONVOLUTIONS)) else ()
        for attribute in _ATTENTION_WEIGHTS if isinstance(module, nn.MultiheadAttention) else names:
            if is_parametrized(module, attribute):
                # Reading the attribute could move the state of, say, a power iteration; a copy in eval mode does not.
                weight = copy.deepcopy(module.parametrizations[attribute]).eval()()
            else:
                weight = getattr(module, attribute)
            if weight is None or any(weight is other for other in seen):
                continue
            if is_lazy(weight):
                raise UserError(f"layer {name or type(module).__name__} has no weights yet: run the model once")
            seen.append(weight)
            if weight.numel() > 0:
                yield name, weight


def _norm(tensor: Tensor, order: int) -> Tensor:
    values = tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach()
    norm: Tensor = torch.linalg.vector_norm(values.abs() if values.is_complex() else values, order, dtype=torch.float64)
    return norm


def _stack(scalars: Iterable[Tensor]) -> Tensor:
    scalars = list(scalars)
    return torch.stack([each.to(scalars[0].device) for each in scalars])


def _layer(parameter: str) -> str:
    path = f".{parameter}"
    owner = path.partition(".parametrizations.")[0] if ".parametrizations." in path else path.rpartition(".")[0]
    return owner[1:]
