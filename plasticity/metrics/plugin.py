"""Measures of plasticity as metrics of Avalanche's EvaluationPlugin."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from avalanche.evaluation.metric_definitions import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor, cat, nn
from torch.nn.parameter import is_lazy

from plasticity.distributed import group_of, of_all, rows_of_all
from plasticity.errors import UserError
from plasticity.exclusion import Exclude, Exclusion
from plasticity.groups import UnitGroup, UnitGroups, unwrap
from plasticity.measures.scalars import stack
from plasticity.metrics.measured import DEFAULT, MEASURES, Evidence, Values, gradients
from plasticity.metrics.observer import GradientObserver, Observer
from plasticity.metrics.probing import FixedProbe
from plasticity.metrics.settings import Settings
from plasticity.metrics.steps import StepWatch
from plasticity.metrics.tally import Tally
from plasticity.unit_gradients import GradientStatistics

Emitted = list[MetricValue] | None
Seen = TypeVar("Seen")


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
        rows = features if settings.needs("features") else 0
        fixed = FixedProbe(probe, probe_samples, balanced=balanced, features=rows, groups=declared)
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
        rows = settings.features if settings.needs("features") else 0
        watched = settings.needs("units") or settings.needs("features")
        self._probe = probe if watched else None
        watched = watched and probe is None
        self._training = self._evaluation = None
        if watched and settings.in_training:
            self._training = Observer(rows, wide=settings.epoch, groups=groups, every=settings.every)
        if watched and settings.in_evaluation:
            self._evaluation = Observer(rows, wide=settings.stream, shared=True, groups=groups)
        self._initial: dict[str, Tensor] = {}
        self._model: weakref.ref[nn.Module] | None = None
        self._gradients: Values = {}
        looks = settings.in_training and settings.needs("unit_gradients")
        self._unit_gradients = GradientObserver(groups) if looks else None
        self._steps = StepWatch() if settings.in_training and settings.needs("steps") else None
        self._step: Values = {}
        self._sums: dict[str, dict[str | None, tuple[Tensor, int]]] = {"gradients": {}, "steps": {}}
        self._seen: Tally | None = None  # on the probe, in this evaluation
        watching, stepping = self._training is not None, self._steps is not None
        acting = {
            "before_forward": watching or stepping,
            "after_forward": watching or stepping,
            "before_update": looks or (settings.in_training and settings.needs("gradients")),
            "after_update": stepping,
            "after_training_iteration": settings.minibatch,
        }
        self.idle_at = frozenset(event for event, acts in acting.items() if not acts)

    def result(self) -> float | None:
        """Return None: values are emitted with their names."""
        return None

    def reset(self) -> None:
        """Forget what was seen; the initial parameters stay."""
        self._restart_training()
        self._restart_evaluation()

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
        self._restart_training()

    def before_forward(self, strategy: Any) -> None:
        """Watch the training forward pass that follows."""
        if self._training is not None:
            self._training.begin(strategy)
        if self._steps is not None:
            self._steps.begin(strategy)

    def after_forward(self, strategy: Any) -> None:
        """Stop watching."""
        if self._training is not None:
            self._training.rest()
        if self._steps is not None:
            self._steps.note(strategy)

    def before_update(self, strategy: Any) -> None:
        """Measure the gradient, as the optimizer is about to use it."""
        if self.settings.in_training and self.settings.needs("gradients"):
            self._gradients = gradients(unwrap(strategy.model), self.settings.per_layer)
            self._sum_up("gradients", self._gradients)
        if self._unit_gradients is not None:
            self._unit_gradients.look(strategy)

    def after_update(self, strategy: Any) -> None:
        """Measure what the step has done to the loss."""
        if self._steps is not None:
            share = self._steps.take(strategy)
            self._step = {} if share is None else {None: share}
            self._sum_up("steps", self._step)

    def after_training_iteration(self, strategy: Any) -> Emitted:
        """Emit what the mini-batch showed."""
        if not self.settings.minibatch:
            return None
        seen = self._training.close() if self._training is not None else self._probed(strategy)
        norms, self._gradients = self._gradients, {}
        step, self._step = self._step, {}
        still = self._unit_gradients.close() if self._unit_gradients is not None else {}
        return self._emit(strategy, "MB", seen, norms, step, still)

    def after_training_epoch(self, strategy: Any) -> Emitted:
        """Emit what the epoch showed."""
        if not self.settings.epoch:
            if self._training is not None:
                self._training.end()
            return None
        if self._training is not None:
            self._training.close()
        seen = self._probed(strategy) if self._training is None else self._training.wide
        norms, steps = (
            {layer: total / count for layer, (total, count) in self._sums[kind].items()}
            for kind in ("gradients", "steps")
        )
        still: dict[str, GradientStatistics] = {}
        if self._unit_gradients is not None:
            self._unit_gradients.close()
            still = self._unit_gradients.wide
        emitted = self._emit(strategy, "Epoch", seen, norms, steps, still)
        self._restart_training()  # nothing that is no longer needed goes into a checkpoint
        return emitted

    # --- evaluation --------------------------------------------------------------------------------------------

    def before_eval(self, strategy: Any) -> None:
        """Begin an evaluation."""
        self._remember(strategy)
        self._restart_evaluation()

    def before_eval_exp(self, strategy: Any) -> None:
        """Note the initial parameters of heads that the evaluation made."""
        self._remember(strategy)

    def before_eval_forward(self, strategy: Any) -> None:
        """Watch the forward pass that follows."""
        if self._evaluation is not None:
            self._evaluation.begin(strategy)

    def after_eval_forward(self, strategy: Any) -> None:
        """Stop watching."""
        if self._evaluation is not None:
            self._evaluation.rest()

    def after_eval_exp(self, strategy: Any) -> Emitted:
        """Emit what the experience showed."""
        seen = self._evaluation.close() if self._evaluation is not None else None
        if not self.settings.experience:
            return None
        return self._emit(strategy, "Exp", self._probed_in_evaluation(strategy) if seen is None else seen)

    def after_eval(self, strategy: Any) -> Emitted:
        """Emit what the whole evaluation showed."""
        emitted: Emitted = None
        if self.settings.stream:
            seen = self._probed_in_evaluation(strategy) if self._evaluation is None else self._evaluation.wide
            emitted = self._emit(strategy, "Stream", seen)
        self._restart_evaluation()
        return emitted

    # --- common ------------------------------------------------------------------------------------------------

    def _restart_training(self) -> None:
        if self._training is not None:
            self._training.restart()
        if self._unit_gradients is not None:
            self._unit_gradients.restart()
        self._gradients, self._step = {}, {}
        self._sums = {"gradients": {}, "steps": {}}

    def _restart_evaluation(self) -> None:
        self._seen = None
        if self._evaluation is not None:
            self._evaluation.restart()

    def _sum_up(self, kind: str, values: Values) -> None:
        if self.settings.epoch:
            for layer, value in values.items():
                total, count = self._sums[kind].get(layer, (0.0, 0))
                self._sums[kind][layer] = (value + total, count + 1)

    def _probed(self, strategy: Any) -> Tally | None:
        return None if self._probe is None else self._probe.look(strategy)

    def _probed_in_evaluation(self, strategy: Any) -> Tally | None:
        if self._seen is None and strategy.experience is not None:
            self._seen = self._probed(strategy)  # the network stays the same
        return self._seen

    def _emit(
        self,
        strategy: Any,
        granularity: str,
        seen: Tally | None,
        gradient_norms: Values | None = None,
        steps: Values | None = None,
        unit_gradients: Mapping[str, GradientStatistics] | None = None,
    ) -> list[MetricValue]:
        if strategy.experience is None:  # an evaluation of no experience: nothing to name, nothing to measure
            return []
        left_out = self.excluded.layers(strategy.model)

        def counted(units: Mapping[str, Seen]) -> dict[str, Seen]:
            return {name: each for name, each in units.items() if name.partition("#")[0] not in left_out}

        group, rows = group_of(strategy.model), None if seen is None else seen.features()
        if group is not None and rows is not None:
            rows = cat(rows_of_all(rows, group))
        evidence = Evidence(
            model=unwrap(strategy.model),
            statistics={} if seen is None else counted(of_all(seen.statistics, group)),
            features=rows,
            initial=self._initial,
            gradients=gradient_norms or {},
            unit_gradients=counted(unit_gradients or {}),
            sample_plasticity=steps or {},
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
        x = int(strategy.clock.train_iterations)
        numbers = stack(found.values()).tolist()  # the only copy to the host
        return [MetricValue(self, name, number, x) for name, number in zip(found, numbers, strict=True)]

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
