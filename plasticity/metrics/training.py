"""What the metrics see of training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from plasticity.groups import UnitGroups, unwrap
from plasticity.metrics.measured import Values, gradients
from plasticity.metrics.observer import GradientObserver, Observer
from plasticity.metrics.probing import FixedProbe
from plasticity.metrics.settings import Settings
from plasticity.metrics.steps import StepWatch
from plasticity.metrics.tally import Seen, Tally
from plasticity.plugins.loss_scale import refuse_scaled_gradients
from plasticity.watching.unit_gradients import GradientStatistics


class TrainingWatch:
    """Watches training over a narrow and a wide stretch, an iteration and its epoch.

    Args:
        settings: What to measure, and when; where that is never in training, there is nothing to do.
        groups: The hidden units, if they are declared by hand.
        probe: The samples on which to look at units and representations, if they are fixed.

    Attributes:
        observer: Watches the forward passes; None where nobody asks about them.
        acts: By event of a training iteration, whether there is anything to do at it.
    """

    def __init__(self, settings: Settings, groups: UnitGroups | None = None, probe: FixedProbe | None = None) -> None:
        self._settings = settings
        self._probe = probe if settings.observed else None
        self.observer: Observer | None = None
        if settings.in_training and settings.observed and probe is None:
            self.observer = Observer(settings.rows, wide=settings.epoch, groups=groups, every=settings.every)
        looks = settings.in_training and settings.needs("unit_gradients")
        self._unit_gradients = GradientObserver(groups) if looks else None
        self._measures_gradients = settings.in_training and settings.needs("gradients")
        self._steps = StepWatch() if settings.in_training and settings.needs("steps") else None
        self._begin()
        watching, stepping = self.observer is not None, self._steps is not None
        self.acts = {
            "before_forward": watching or stepping,
            "after_forward": watching or stepping,
            "before_update": looks or self._measures_gradients,
            "after_update": stepping,
            "after_training_iteration": settings.minibatch,
        }

    def _begin(self) -> None:
        self._gradients: Values = {}
        self._step: Values = {}
        self._sums: dict[str, dict[str | None, tuple[Tensor, int]]] = {"gradients": {}, "steps": {}}

    def restart(self) -> None:
        """Begin a wide stretch, and with it a narrow one; forget what was seen."""
        if self.observer is not None:
            self.observer.restart()
        if self._unit_gradients is not None:
            self._unit_gradients.restart()
        self._begin()

    def rest(self) -> None:
        """Watch no more, until training goes on."""
        if self.observer is not None:
            self.observer.end()

    # --- an iteration ------------------------------------------------------------------------------------------

    def before_forward(self, strategy: Any) -> None:
        """Watch the training forward pass that follows."""
        if self.observer is not None:
            self.observer.begin(strategy)
        if self._steps is not None:
            self._steps.begin(strategy)

    def after_forward(self, strategy: Any) -> None:
        """Stop watching."""
        if self.observer is not None:
            self.observer.rest()
        if self._steps is not None:
            self._steps.note(strategy)

    def before_update(self, strategy: Any) -> None:
        """Measure the gradient, as the optimizer is about to use it."""
        if self._measures_gradients:
            refuse_scaled_gradients(strategy)
            self._gradients = gradients(unwrap(strategy.model), self._settings.per_layer)
            self._sum_up("gradients", self._gradients)
        if self._unit_gradients is not None:
            self._unit_gradients.look(strategy)

    def after_update(self, strategy: Any) -> None:
        """Measure what the step has done to the loss."""
        if self._steps is not None:
            share = self._steps.take(strategy)
            self._step = {} if share is None else {None: share}
            self._sum_up("steps", self._step)

    # --- what was seen -----------------------------------------------------------------------------------------

    def close(self, strategy: Any) -> Seen:
        """End the narrow stretch and begin the next; return what it showed."""
        units = self._probed(strategy) if self.observer is None else self.observer.close()
        norms, self._gradients = self._gradients, {}
        step, self._step = self._step, {}
        return Seen(units, norms, step, {} if self._unit_gradients is None else self._unit_gradients.close())

    def wide(self, strategy: Any) -> Seen:
        """Close the narrow stretch; return what the wide one showed."""
        if self.observer is not None:
            self.observer.close()
        units = self._probed(strategy) if self.observer is None else self.observer.wide
        still: dict[str, GradientStatistics] = {}
        if self._unit_gradients is not None:
            self._unit_gradients.close()
            still = self._unit_gradients.wide
        return Seen(units, self._mean("gradients"), self._mean("steps"), still)

    def _probed(self, strategy: Any) -> Tally | None:
        return None if self._probe is None else self._probe.look(strategy)

    def _sum_up(self, kind: str, values: Values) -> None:
        if self._settings.epoch:
            for layer, value in values.items():
                total, count = self._sums[kind].get(layer, (0.0, 0))
                self._sums[kind][layer] = (value + total, count + 1)

    def _mean(self, kind: str) -> Values:
        return {layer: total / count for layer, (total, count) in self._sums[kind].items()}
