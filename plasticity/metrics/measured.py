"""The measures that can be metrics, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from plasticity import measures
from plasticity.errors import UserError
from plasticity.measures import UnitGradientMeans
from plasticity.measures.scalars import stack
from plasticity.watching.unit_gradients import GradientStatistics
from plasticity.watching.unit_statistics import UnitStatistics

Needs = Literal["units", "features", "weights", "initial", "gradients", "unit_gradients", "steps"]
"""What a measure is computed from: units and features are watched, losses compared before and after a step, the others
read from the model."""

IN_TRAINING = ("gradients", "unit_gradients", "steps")
"""What there is in training only."""

Values = dict[str | None, Tensor]
"""0-dim tensors by layer; None is the whole network. Empty where the measure is undefined."""


@dataclass(frozen=True)
class Evidence:
    """What measures are computed from.

    Attributes:
        model: The network as it is now.
        statistics: What its units did, by group name.
        features: (rows, width) its penultimate representation, or None.
        initial: Its parameters when they were first seen, by qualified name.
        gradients: Norm of its gradients, by layer; None is the whole network.
        unit_gradients: What was seen of the gradients of its units, by group name.
        sample_plasticity: The sample plasticity of its steps, under None.
        tau: Largest score of a dormant unit.
        over_active_bound: Least share of samples x positions on which an over-active unit fires.
        per_layer: Whether a value for each layer is asked for.
    """

    model: nn.Module
    statistics: Mapping[str, UnitStatistics]
    features: Tensor | None
    initial: Mapping[str, Tensor]
    gradients: Values
    unit_gradients: Mapping[str, GradientStatistics]
    sample_plasticity: Values
    tau: float
    over_active_bound: float
    per_layer: bool


class Measured(NamedTuple):
    """A measure as a metric.

    Attributes:
        needs: What it is computed from.
        compute: The measure itself.
    """

    needs: Needs
    compute: Callable[[Evidence], Values]


def gradients(model: nn.Module, per_layer: bool) -> Values:
    """Measure the gradients that the parameters hold now.

    Args:
        model: The network.
        per_layer: Whether a value for each layer is asked for.

    Returns:
        L2 norms; empty for a model without parameters.
    """
    return _with_whole(measures.gradient_norm_by_layer(model), per_layer)


def _units(measure: Callable[..., Tensor], evidence: Evidence, **settings: float) -> Values:
    return _of_groups(measure, evidence.statistics, evidence.per_layer, **settings)


def _of_groups(
    measure: Callable[..., Tensor], seen: Mapping[str, UnitGradientMeans], per_layer: bool, **settings: float
) -> Values:
    observed = {name: each for name, each in seen.items() if each.count > 0}
    if not observed:
        return {}
    values: Values = {None: measure(observed, **settings)}
    if per_layer:
        values.update(measures.by_layer(measure, observed, **settings))
    return values


def _rank(rank: Callable[[Tensor], Tensor], evidence: Evidence) -> Values:
    return {} if evidence.features is None else {None: rank(evidence.features)}


def _weight_magnitude(evidence: Evidence) -> Values:
    try:
        values: Values = {None: measures.weight_magnitude(evidence.model)}
    except UserError:  # no layer with weights
        return {}
    if evidence.per_layer:
        values.update(measures.weight_magnitude_by_layer(evidence.model))
    return values


def _distance(evidence: Evidence) -> Values:
    return _with_whole(measures.distance_by_layer(evidence.model, evidence.initial), evidence.per_layer)


def _with_whole(layers: dict[str, Tensor], per_layer: bool) -> Values:
    if not layers:
        return {}
    values: Values = {None: torch.linalg.vector_norm(stack(layers.values()))}
    if per_layer:
        values.update(layers)
    return values


NON_FINITE = "NonFiniteUnits"
MEASURES: dict[str, Measured] = {
    "DeadUnits": Measured("units", lambda e: _units(measures.dead_fraction, e)),
    "DormantUnits": Measured("units", lambda e: _units(measures.dormant_fraction, e, tau=e.tau)),
    "OverActiveUnits": Measured("units", lambda e: _units(measures.over_active_fraction, e, bound=e.over_active_bound)),
    NON_FINITE: Measured("units", lambda e: _units(measures.nonfinite_fraction, e)),
    "NotLearningUnits": Measured(
        "unit_gradients", lambda e: _of_groups(measures.not_learning_fraction, e.unit_gradients, e.per_layer)
    ),
    "EffectiveRank": Measured("features", lambda e: _rank(measures.effective_rank, e)),
    "StableRank": Measured("features", lambda e: _rank(measures.stable_rank, e)),
    "Rank99": Measured("features", lambda e: _rank(measures.rank99, e)),
    "ParticipationRatio": Measured("features", lambda e: _rank(measures.participation_ratio, e)),
    "WeightMagnitude": Measured("weights", _weight_magnitude),
    "DistanceFromInitialisation": Measured("initial", _distance),
    "GradientNorm": Measured("gradients", lambda e: e.gradients),
    "SamplePlasticity": Measured("steps", lambda e: e.sample_plasticity),
}
DEFAULT = ("DeadUnits", "DormantUnits", "OverActiveUnits", "EffectiveRank", "WeightMagnitude")
