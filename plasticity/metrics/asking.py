"""What can be asked of the metrics, and when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from plasticity.errors import UserError
from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.metrics.measured import DEFAULT
from plasticity.metrics.plugin import PlasticityMetrics
from plasticity.metrics.probing import FixedProbe
from plasticity.metrics.settings import Settings


def plasticity_metrics(
    *,
    minibatch: bool = False,
    epoch: bool = False,
    experience: bool = False,
    stream: bool = False,
    measures: Sequence[str] | None = None,
    per_layer: bool = False,
    tau: float = 0.025,
    over_active_bound: float = 0.95,
    features: int = 2048,
    every: int = 1,
    sample_plasticity: bool = False,
    probe: Any = None,
    probe_samples: int = 2048,
    balanced: bool = False,
    groups: Iterable[UnitGroup] | None = None,
    exclude: Exclude = None,
) -> list[PlasticityMetrics]:
    """Return metrics for Avalanche's EvaluationPlugin; without a granularity there are none.

    Names and x are as those of Avalanche's own metrics, `DeadUnits_Exp/eval_phase/test_stream/Task000/Exp000` for
    example; x counts training iterations. Values are plain floats.

    - `minibatch` (`_MB`) and `epoch` (`_Epoch`) are emitted in training, over the strategy's own training forward
      passes of that mini-batch or epoch, as they happen: dropout is on, and weights change between mini-batches. Of
      each iteration the first pass after `before_forward` counts, whatever plugins and losses run besides.
    - `experience` (`_Exp`) and `stream` (`_Stream`) are emitted in evaluation, over the passes of that evaluation.
      They only measure; treatments judge units on training data.
    - With a `probe`, units and representations are looked at on its samples instead, in eval mode, at the time of
      emission: what is emitted then depends on the network alone, and not on what the last mini-batches or test samples
      were. In an evaluation all experiences have the same values.

    Where units were NaN or infinite, a warning names the first layer of these, and NonFiniteUnits is emitted whether
    or not it is asked for: shares of dead and dormant units are then lower bounds.

    A measure that is undefined is not emitted: of units where none was observed, of ranks where no features were, of
    weights or distances where the model has none. GradientNorm, NotLearningUnits and SamplePlasticity are emitted in
    training only.

    A network made by `torch.compile` is watched within its own graphs where that is certain to show the same, as
    `plasticity.watch` says; otherwise it runs uncompiled in passes that are watched, and a warning says why.

    Only `minibatch` makes the host wait for the device while training. A few samples of the first mini-batch are run
    once more, to find the units, and again whenever the model is replaced or built differently; this leaves buffers,
    gradients and the random state as they were.

    Args:
        minibatch: After every training iteration.
        epoch: After every training epoch.
        experience: After the evaluation of each experience.
        stream: After an evaluation.
        measures: Names; DeadUnits, DormantUnits, OverActiveUnits, EffectiveRank and WeightMagnitude if None. There are:

            - DeadUnits, DormantUnits, OverActiveUnits, NonFiniteUnits: shares of units, 0..1, units counted equally;
            - EffectiveRank, StableRank, Rank99, ParticipationRatio: of the penultimate representation;
            - WeightMagnitude: of the weights at that time;
            - DistanceFromInitialisation: from the parameters as they were first seen, at the beginning of a training
              or evaluation, of an experience or of an epoch; a model that replaces another begins anew. A parameter
              that grows is left out. Keeps a copy of the parameters;
            - NotLearningUnits: share of units, 0..1, whose gradient stayed exactly 0, as `plasticity.watch_gradients`
              reads it, just before each update of the mini-batch or epoch. It costs next to nothing if no other measure
              watches the passes; with every=1 and a ReLU, dead units are among these;
            - GradientNorm: of the gradient just before the update, after what other plugins did to it; its mean over
              the iterations of an epoch;
            - SamplePlasticity: share of a mini-batch's loss that its own step takes away, 0..1; its mean over the
              iterations of an epoch. The loss is the strategy's criterion, without what plugins add to it.

            `plasticity.measures` defines each.
        per_layer: Emit each measure of units or parameters for every layer too: its name is the last part of the
            metric's, "(model)" for parameters of the model itself.
        tau: Largest score of a dormant unit, 0..1.
        over_active_bound: Least share of samples x positions on which an over-active unit fires, 0..1.
        features: Rows of the penultimate representation on which ranks are computed, at most: the first ones; over a
            stream equally many of each experience, its first ones; of a probe its first ones.
        every: Look at units and representations in the first of so many training mini-batches only, counted anew in
            each epoch: values are then exactly those of the mini-batches that were looked at, and other mini-batches
            have none. Evaluations, gradients and steps are looked at in full.
        sample_plasticity: Emit SamplePlasticity too, whether or not `measures` names it; it costs a forward pass in
            every iteration.
        probe: Samples on which to look at units and representations every time: a data set of (input, label, ...)
            samples, an experience, a tensor of inputs or a `plasticity.probe.Probe`; training samples, preferably.
        probe_samples: How many of them, at most: drawn once, with a fixed seed.
        balanced: Draw equally many of each class, as far as there are.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.
        exclude: Layers whose units are not counted, by qualified name or pattern, one or several; see
            `plasticity.exclusion`. Measures of representations, weights and gradients of parameters are of all layers.

    Returns:
        One metric that emits all of them, from one watch; or none.

    Raises:
        UserError: If a measure is unknown, a setting has no meaning, or only what training has is asked for in
            evaluation; while training or evaluating, if the model cannot be run on the probe.

    Source: of each measure in `plasticity.measures`.
    """
    if not (minibatch or epoch or experience or stream):
        return []
    names = DEFAULT if measures is None else (measures,) if isinstance(measures, str) else tuple(measures)
    if sample_plasticity:
        names = (*names, "SamplePlasticity")
    if balanced and probe is None:
        raise UserError("balanced=True is about the probe, and there is none")
    settings = Settings(
        measures=tuple(dict.fromkeys(names)),
        minibatch=minibatch,
        epoch=epoch,
        experience=experience,
        stream=stream,
        per_layer=per_layer,
        tau=tau,
        over_active_bound=over_active_bound,
        features=features,
        every=every,
        probed=probe is not None,
    )
    declared = None if groups is None else UnitGroups(groups)
    fixed = None
    if probe is not None:
        fixed = FixedProbe(probe, probe_samples, balanced=balanced, features=settings.rows, groups=declared)
    return [PlasticityMetrics(settings, declared, fixed, exclude)]
