"""Measures of plasticity as metrics of Avalanche's EvaluationPlugin."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, TypeVar

from avalanche.evaluation.metric_definitions import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor, cat, nn
from torch.nn.parameter import is_lazy

from plasticity.distributed import group_of, of_all, rows_of_all
from plasticity.exclusion import Exclude, Exclusion
from plasticity.groups import UnitGroups, unwrap
from plasticity.metrics.evaluation import EvaluationWatch
from plasticity.metrics.measured import Evidence
from plasticity.metrics.numbers import named_numbers
from plasticity.metrics.probing import FixedProbe
from plasticity.metrics.settings import Settings
from plasticity.metrics.tally import Seen
from plasticity.metrics.training import TrainingWatch

Emitted = list[MetricValue] | None
Each = TypeVar("Each")


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

        def name(measure: str) -> str:
            title = f"{measure}_{granularity}"
            return str(get_metric_name(title, strategy, add_experience=granularity == "Exp", add_task=True))

        x = int(strategy.clock.train_iterations)
        numbers = named_numbers(self.settings.measures, self._evidence(strategy, seen), name)
        return [MetricValue(self, name, number, x) for name, number in numbers.items()]

    def _evidence(self, strategy: Any, seen: Seen) -> Evidence:
        """Put together what measures look at, of all processes."""
        left_out = self.excluded.layers(strategy.model)

        def counted(units: Mapping[str, Each]) -> dict[str, Each]:
            return {name: each for name, each in units.items() if name.partition("#")[0] not in left_out}

        group, rows = group_of(strategy.model), None if seen.units is None else seen.units.features()
        if group is not None and rows is not None:
            rows = cat(rows_of_all(rows, group))
        return Evidence(
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
