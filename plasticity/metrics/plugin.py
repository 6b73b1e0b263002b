"""Measures of plasticity as metrics of Avalanche's EvaluationPlugin."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from avalanche.evaluation.metric_definitions import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor, cat, nn
from torch.nn.parameter import is_lazy

from plasticity.distributed import group_of, of_all, rows_of_all
from plasticity.errors import UserError
from plasticity.exclusion import Exclude, Exclusion
from plasticity.finiteness import nonfinite_activity
from plasticity.groups import UnitGroup, UnitGroups, unwrap
from plasticity.measures.scalars import stack
from plasticity.metrics.evaluation import EvaluationWatch
from plasticity.metrics.measured import DEFAULT, MEASURES, NON_FINITE, Evidence
from plasticity.metrics.probing import FixedProbe
from plasticity.metrics.settings import Settings
from plasticity.metrics.tally import Seen
from plasticity.metrics.training import TrainingWatch

Emitted = list[MetricValue] | None
Each = TypeVar("Each")


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


class PlasticityMetrics(PluginMetric[float]):
    """Emits every measure at every granularity asked for, from one watch; made by `plasticity_metrics`.

    Args:
        settings: What to measure, and when.
        groups: The hidden units, if they are declared by hand.
        probe: The samples on which to look at units and representations, if they are fixed.
        exclude: Layers whose units are not counted.

    Attributes:
        idle_at: Events of a training iteration at which there is nothing to do, so that nobody has to call.
        quiet_at: Those at which nothing is emitted, and the experience is of no interest.
    """

    quiet_at = frozenset({"before_forward", "after_forward", "before_update", "after_update"})

    def __init__(
        self,
        settings: Settings,
        groups: UnitGroups | None = None,
        probe: FixedProbe | None = None,
        exclude: Exclude = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Avalanche does not annotate it
        self.settings = settings
        self.excluded = Exclusion(exclude)
        self._training = TrainingWatch(settings, groups, probe)
        self._evaluation = EvaluationWatch(settings, groups, probe)
        self._initial: dict[str, Tensor] = {}
        self._model: weakref.ref[nn.Module] | None = None
        self.idle_at = frozenset(event for event, acts in self._training.acts.items() if not acts)

    def result(self) -> float | None:
        """Return None: values are emitted with their names."""
        return None

    def reset(self) -> None:
        """Forget what was seen; the initial parameters stay."""
        self._training.restart()
        self._evaluation.restart()

    # --- training ----------------------------------------------------------------------------------------------

    def before_training(self, strategy: Any) -> None:
        """Note the initial parameters."""
        self._remember(strategy)

    def before_training_exp(self, strategy: Any) -> None:
        """Note the initial parameters of new heads, or of a new model."""
        self._remember(strategy)

    def before_training_epoch(self, strategy: Any) -> None:
        """Begin an epoch."""
        self._remember(strategy)
        self._training.restart()

    def before_forward(self, strategy: Any) -> None:
        """Watch the training forward pass that follows."""
        self._training.before_forward(strategy)

    def after_forward(self, strategy: Any) -> None:
        """Stop watching."""
        self._training.after_forward(strategy)

    def before_update(self, strategy: Any) -> None:
        """Measure the gradient, as the optimizer is about to use it."""
        self._training.before_update(strategy)

    def after_update(self, strategy: Any) -> None:
        """Measure what the step has done to the loss."""
        self._training.after_update(strategy)

    def after_training_iteration(self, strategy: Any) -> Emitted:
        """Emit what the mini-batch showed."""
        return self._emit(strategy, "MB", self._training.close(strategy)) if self.settings.minibatch else None

    def after_training_epoch(self, strategy: Any) -> Emitted:
        """Emit what the epoch showed."""
        if not self.settings.epoch:
            self._training.rest()
            return None
        emitted = self._emit(strategy, "Epoch", self._training.wide(strategy))
        self._training.restart()  # nothing that is no longer needed goes into a checkpoint
        return emitted

    # --- evaluation --------------------------------------------------------------------------------------------

    def before_eval(self, strategy: Any) -> None:
        """Begin an evaluation."""
        self._remember(strategy)
        self._evaluation.restart()

    def before_eval_exp(self, strategy: Any) -> None:
        """Note the initial parameters of heads that the evaluation made."""
        self._remember(strategy)

    def before_eval_forward(self, strategy: Any) -> None:
        """Watch the forward pass that follows."""
        self._evaluation.before_forward(strategy)

    def after_eval_forward(self, strategy: Any) -> None:
        """Stop watching."""
        self._evaluation.after_forward()

    def after_eval_exp(self, strategy: Any) -> Emitted:
        """Emit what the experience showed."""
        seen = self._evaluation.close(strategy, self.settings.experience)
        return self._emit(strategy, "Exp", seen) if self.settings.experience else None

    def after_eval(self, strategy: Any) -> Emitted:
        """Emit what the whole evaluation showed."""
        emitted = self._emit(strategy, "Stream", self._evaluation.wide(strategy)) if self.settings.stream else None
        self._evaluation.restart()
        return emitted

    # --- common ------------------------------------------------------------------------------------------------

    def _emit(self, strategy: Any, granularity: str, seen: Seen) -> list[MetricValue]:
        if strategy.experience is None:  # an evaluation of no experience: nothing to name, nothing to measure
            return []
        left_out = self.excluded.layers(strategy.model)

        def counted(units: Mapping[str, Each]) -> dict[str, Each]:
            return {name: each for name, each in units.items() if name.partition("#")[0] not in left_out}

        group, rows = group_of(strategy.model), None if seen.units is None else seen.units.features()
        if group is not None and rows is not None:
            rows = cat(rows_of_all(rows, group))
        evidence = Evidence(
            model=unwrap(strategy.model),
            statistics={} if seen.units is None else counted(of_all(seen.units.statistics, group)),
            features=rows,
            initial=self._initial,
            gradients=seen.gradients,
            unit_gradients=counted(seen.unit_gradients),
            sample_plasticity=seen.steps,
            tau=self.settings.tau,
            over_active_bound=self.settings.over_active_bound,
            per_layer=self.settings.per_layer,
        )
        found: dict[str, Tensor] = {}
        for measure in self.settings.measures:
            title = f"{measure}_{granularity}"
            name = get_metric_name(title, strategy, add_experience=granularity == "Exp", add_task=True)
            for layer, value in MEASURES[measure].compute(evidence).items():
                found[name if layer is None else f"{name}/{layer or '(model)'}"] = value
        if not found:
            return []
        unasked = None
        if NON_FINITE not in self.settings.measures and evidence.statistics:
            title = f"{NON_FINITE}_{granularity}"
            unasked = get_metric_name(title, strategy, add_experience=granularity == "Exp", add_task=True)
            whole = MEASURES[NON_FINITE].compute(replace(evidence, per_layer=False))
            if whole:
                found[unasked] = whole[None]
        x = int(strategy.clock.train_iterations)
        numbers = dict(zip(found, stack(found.values()).tolist(), strict=True))  # the only copy to the host
        if any(number > 0 for name, number in numbers.items() if name.startswith(f"{NON_FINITE}_")):
            reason = nonfinite_activity(evidence.statistics)
            what = "they count as neither dead nor dormant. The network may have diverged"
            warnings.warn(f"{reason}: {what}", stacklevel=2)
        elif unasked is not None:
            numbers.pop(unasked, None)
        return [MetricValue(self, name, number, x) for name, number in numbers.items()]

    def _remember(self, strategy: Any) -> None:
        """Keep the parameters that were never seen before as they are now."""
        if not self.settings.needs("initial"):
            return
        model = unwrap(strategy.model)
        if self._model is not None and self._model() is not model:
            self._initial = {}  # another model than before, not one restored from a checkpoint
        self._model = weakref.ref(model)
        for name, parameter in model.named_parameters():
            if name not in self._initial and not is_lazy(parameter):
                self._initial[name] = parameter.detach().clone()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}
