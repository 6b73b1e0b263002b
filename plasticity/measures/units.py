"""Measures of hidden units, from what `watch` saw of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from plasticity.errors import UserError
from plasticity.measures.scalars import stack, working_type


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
        """(size,) float64 (float32 on MPS): mean activation over `count`."""

    @property
    def mean_abs(self) -> Tensor:
        """(size,) float64 (float32 on MPS): mean magnitude of the activation over `count`."""


class UnitGradientMeans(Protocol):
    """What a measure reads from the gradients of one group of `size` units."""

    @property
    def count(self) -> int:
        """Looks at gradients."""

    @property
    def mean_abs(self) -> Tensor:
        """(size,) float64 (float32 on MPS): mean magnitude of each unit's gradient over `count`."""


Statistics = UnitCounts | Mapping[str, UnitCounts]
"""The statistics of a network, by group name, or those of one group."""

Gradients = UnitGradientMeans | Mapping[str, UnitGradientMeans]
"""The gradients of the units of a network, by group name, or those of one group."""

_Seen = TypeVar("_Seen", bound=UnitGradientMeans)


def dead_units(stat: UnitCounts) -> Tensor:
    """Mark the units whose activation was exactly 0 on everything seen, so that the sum of |h| is 0.

    Args:
        stat: Statistics of one group of `size` units.

    Returns:
        (size,) bool. No unit with non-finite statistics is marked, and none of a group never observed (count 0).

    Source: Whitaker and Whitley 2023, arXiv 2302.05818.
    """
    return (stat.mean_abs == 0) & (stat.count > 0)


def dormant_units(stat: UnitCounts, tau: float = 0.025) -> Tensor:
    """Mark the units whose mean |h| is at most `tau` times the average of that mean over the layer.

    That is ReDo's score, mean |h| over the layer's mean (not sum) of it. With `tau` 0 these are the dead units; in a
    layer that is all zero every unit is dormant.

    Args:
        stat: Statistics of one group of `size` units.
        tau: Largest score of a dormant unit, 0..1, a share of the layer's mean.

    Returns:
        (size,) bool. No unit with non-finite statistics is marked, and the layer's mean is over the others; none of a
        group never observed (count 0).

    Raises:
        UserError: If `tau` is outside 0..1.

    Source: Sokar et al. 2023, arXiv 2302.12902, as the authors' code has it.
    """
    _check_fraction("tau", tau)
    finite = torch.isfinite(stat.mean_abs)
    layer_mean = torch.where(finite, stat.mean_abs, 0.0).sum() / finite.sum()
    scores = torch.where(layer_mean > 0, stat.mean_abs / layer_mean, 0.0)
    return finite & (scores <= tau) & (stat.count > 0)


def over_active_units(stat: UnitCounts, bound: float = 0.95) -> Tensor:
    """Mark the units that fired (h > 0) on at least the share `bound` of samples x positions.

    Counts alone decide, so a unit with a non-finite mean is judged like any other; NaN has not fired.

    Args:
        stat: Statistics of one group of `size` units.
        bound: Least share of samples x positions, 0..1, reached exactly counts.

    Returns:
        (size,) bool; no unit of a group never observed (count 0) is marked.

    Raises:
        UserError: If `bound` is outside 0..1.

    Source: the hyper neurons of Mitra and Franco 2020, arXiv 2001.01755; the bound is ours.
    """
    _check_fraction("bound", bound)
    return (stat.fired >= _least_count(bound, stat.count)) & (stat.count > 0)


def nonfinite_units(stat: UnitCounts) -> Tensor:
    """Mark the units whose mean |h| is NaN or infinite: diverged, so neither dead nor dormant.

    Args:
        stat: Statistics of one group of `size` units.

    Returns:
        (size,) bool; no unit of a group never observed (count 0) is marked.

    Source: none; it says how far the other measures of units can be trusted.
    """
    return ~torch.isfinite(stat.mean_abs) & (stat.count > 0)


def not_learning_units(stat: UnitGradientMeans) -> Tensor:
    """Mark the units whose gradient was exactly 0 at every look: no step moved what shifts them.

    Dead units of a ReLU are among them, and units that fire in vain: see `plasticity.watch_gradients`.

    Args:
        stat: Gradients of one group of `size` units.

    Returns:
        (size,) bool. No unit with a gradient that was not finite is marked, and none of a group never observed.

    Source: none for the exact zero; gradients tell dormant units after Liu et al. 2025, arXiv 2505.24061.
    """
    return (stat.mean_abs == 0) & (stat.count > 0)


def dead_fraction(stats: Statistics) -> Tensor:
    """Return the share of `dead_units`; units are counted equally, so a wide layer weighs more.

    Args:
        stats: Statistics of a network, by group name, or of one group. Groups never observed are left out.

    Returns:
        0-dim, a share in 0..1.

    Raises:
        UserError: If there is no group, or none was observed.

    Source: Whitaker and Whitley 2023, arXiv 2302.05818, who count dead units.
    """
    return _fraction(dead_units, stats)


def dormant_fraction(stats: Statistics, tau: float = 0.025) -> Tensor:
    """Return the share of `dormant_units`; units are counted equally, scores are within each layer.

    Args:
        stats: Statistics of a network, by group name, or of one group. Groups never observed are left out.
        tau: Largest score of a dormant unit, 0..1, a share of its layer's mean.

    Returns:
        0-dim, a share in 0..1.

    Raises:
        UserError: If `tau` is outside 0..1, there is no group, or none was observed.

    Source: Sokar et al. 2023, arXiv 2302.12902.
    """
    return _fraction(lambda stat: dormant_units(stat, tau), stats)


def over_active_fraction(stats: Statistics, bound: float = 0.95) -> Tensor:
    """Return the share of `over_active_units`; units are counted equally.

    Args:
        stats: Statistics of a network, by group name, or of one group. Groups never observed are left out.
        bound: Least share of samples x positions on which an over-active unit fires, 0..1.

    Returns:
        0-dim, a share in 0..1.

    Raises:
        UserError: If `bound` is outside 0..1, there is no group, or none was observed.

    Source: the hyper neurons of Mitra and Franco 2020, arXiv 2001.01755; the bound is ours.
    """
    return _fraction(lambda stat: over_active_units(stat, bound), stats)


def nonfinite_fraction(stats: Statistics) -> Tensor:
    """Return the share of `nonfinite_units`; above 0, dead and dormant shares are lower bounds.

    Args:
        stats: Statistics of a network, by group name, or of one group. Groups never observed are left out.

    Returns:
        0-dim, a share in 0..1.

    Raises:
        UserError: If there is no group, or none was observed.

    Source: none; it says how far the other measures of units can be trusted.
    """
    return _fraction(nonfinite_units, stats)


def not_learning_fraction(stats: Gradients) -> Tensor:
    """Return the share of `not_learning_units`; units are counted equally.

    Args:
        stats: Gradients of a network's units, by group name, or of one group. Groups never observed are left out.

    Returns:
        0-dim, a share in 0..1.

    Raises:
        UserError: If there is no group, or none was observed.

    Source: none; see `not_learning_units`.
    """
    return _fraction(not_learning_units, stats)


def by_layer(measure: Callable[..., Tensor], stats: Mapping[str, _Seen], **settings: float) -> dict[str, Tensor]:
    """Apply a measure of units to each group alone: `by_layer(dormant_fraction, stats, tau=0.1)`.

    Args:
        measure: A function of the statistics of one group, such as `dead_fraction` or `dead_units`.
        stats: Statistics of a network, by group name.
        **settings: Further arguments of the measure.

    Returns:
        What the measure returns, by group name; groups never observed are left out.

    Raises:
        UserError: If there is no group, none was observed, or the measure refuses a setting.

    Source: none.
    """
    return {name: measure(stat, **settings) for name, stat in _observed(stats).items()}


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name} must be between 0 and 1, not {value}")


def _least_count(bound: float, count: int) -> int:
    """Return the least whole number whose share of `count`, correctly rounded, is at least the bound."""
    least = math.ceil(bound * count)
    while least > 0 and (least - 1) / count >= bound:  # the product is rounded, and may have passed a whole number
        least -= 1
    while count > 0 and least / count < bound:
        least += 1
    return least


def _observed(stats: _Seen | Mapping[str, _Seen]) -> dict[str, _Seen]:
    groups = stats if isinstance(stats, Mapping) else {"": stats}
    groups = {name: stat for name, stat in groups.items() if len(stat.mean_abs) > 0}
    if not groups:
        raise UserError("there are no hidden units to measure: the statistics hold no group")
    observed = {name: stat for name, stat in groups.items() if stat.count > 0}
    if not observed:
        raise UserError("no hidden unit was observed: run the model inside `watch` before measuring")
    return observed


def _fraction(mask: Callable[[_Seen], Tensor], stats: _Seen | Mapping[str, _Seen]) -> Tensor:
    masks = [mask(stat) for stat in _observed(stats).values()]
    marked = stack(each.sum() for each in masks).sum()
    return marked.to(working_type(marked.device)) / sum(len(each) for each in masks)
