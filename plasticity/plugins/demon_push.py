"""What Demon pruning does at every step: a penalty and noise push units to die."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from avalanche.training.utils import _at_task_boundary
from torch import Tensor

from plasticity.distributed import group_of
from plasticity.errors import UserError
from plasticity.exclusion import Exclusion
from plasticity.groups import UnitGroups
from plasticity.methods.demon_noise import AsymmetricNoise, NoiseGenerators, live_units
from plasticity.methods.demon_pruning import DemonRule, Penalised, add_penalty_gradient, penalised
from plasticity.methods.demon_schedule import one_cycle
from plasticity.methods.latest_activity import MagnitudeActivity
from plasticity.plugins.loss_scale import LossScale
from plasticity.plugins.observing import ForwardObserver

UnitsOf = Callable[[Any], UnitGroups]
"""Returns the present units of a strategy."""


class Push:
    """The penalty and the noise, both on a one-cycle schedule.

    Args:
        rule: How strong they are, and where they act.
        total_steps: Number of training steps over which one cycle extends; None: one cycle for each experience.
        seed: Of the noise.
        groups: The hidden units, if they are declared by hand.
        excluded: Layers that get no noise.
        idle: Never push.
    """

    def __init__(
        self,
        rule: DemonRule,
        total_steps: int | None,
        seed: int,
        groups: UnitGroups | None,
        excluded: Exclusion,
        *,
        idle: bool,
    ) -> None:
        self.rule, self.total_steps, self.idle = rule, total_steps, idle
        self._excluded = excluded
        self._step = 0
        self._steps = total_steps
        self._generators = NoiseGenerators(seed)
        self._observer = ForwardObserver(partial(MagnitudeActivity, private=False), groups)
        self._scale = LossScale()
        self._penalised: list[Penalised] | None = None
        self._noise: AsymmetricNoise | None = None

    def strength(self, peak: float) -> float:
        """Return the present value of a peak strength on the one-cycle schedule; 0 where nothing is to be done."""
        if self.idle:
            return 0.0
        return one_cycle(self._step, round(self.rule.span * (self._steps or 0)), peak)

    @property
    def watches(self) -> bool:
        """Whether it looks in this step at which units fire."""
        return self.rule.gate == "units" and self.strength(self.rule.noise_std) > 0

    @property
    def watched(self) -> UnitGroups | None:
        """The units of the very model that is watched in this step; None if none is."""
        activity = self._observer.activity
        return activity.units if activity is not None and self.watches else None

    # --- the schedule ------------------------------------------------------------------------------------------

    def begin_experience(self, strategy: Any) -> None:
        """Begin a cycle, unless one extends over several experiences."""
        if self.total_steps is None and _at_task_boundary(strategy.experience):
            self._step, self._steps = 0, None

    def count_steps(self, strategy: Any) -> None:
        """Count the steps of the cycle, if they are not known yet.

        Raises:
            UserError: If the stream does not tell.
        """
        if self._steps is None:
            self._steps = _steps(strategy)

    def advance(self) -> None:
        """Go one step on in the cycle."""
        self._step += 1

    # --- a step ------------------------------------------------------------------------------------------------

    def before_forward(self, strategy: Any) -> None:
        """Watch the strategy's own forward pass, to see which units are live."""
        if self.watches:
            self._observer.begin(strategy)

    def before_backward(self, strategy: Any) -> None:
        """Make ready to see by how much the loss is scaled."""
        if self.strength(self.rule.regularisation) > 0:
            self._scale.ask(strategy)

    def penalise(self, strategy: Any, units_of: UnitsOf, asker: object) -> None:
        """Add the gradient of the penalty, after the backward pass.

        Args:
            strategy: The strategy.
            units_of: Called where the units are not known yet.
            asker: The plugin, for messages.
        """
        strength, scale = self.strength(self.rule.regularisation), self._scale.take(strategy, asker)
        if strength > 0:
            if self._penalised is None:
                self._penalised = penalised(strategy.model, units_of(strategy), self.rule.regularise)
            add_penalty_gradient(self._penalised, strength, scale)

    def add_noise(self, strategy: Any, units_of: UnitsOf) -> bool:
        """Add the noise, after the update; arguments as for `penalise`. Returns whether there was any."""
        std = self.strength(self.rule.noise_std)
        if std == 0:
            return False
        if self._noise is None:
            spared = self._excluded.tensors(strategy.model)
            self._noise = AsymmetricNoise(strategy.model, units_of(strategy), self.rule.gate, spared)
        self._observer.require_pass(strategy)
        if self._observer.activity is not None:
            self._observer.activity.put_together(len(strategy.mb_x), group_of(strategy.model))
        self._noise.add(self._live(), std, self._generators.of(strategy.model))
        return True

    def _live(self) -> dict[str, Tensor]:
        """Return which units fired in the latest passes, (size,) bool by group name, and forget these passes."""
        activity = self._observer.activity
        if activity is None:
            return {}
        live = live_units(activity)
        activity.clear()
        return live

    # --- between steps -----------------------------------------------------------------------------------------

    def look_away(self) -> None:
        """Leave no hook on the model."""
        self._observer.end()

    def unbind(self) -> None:
        """Hold none of the model's parameters; they are looked up again in the next step."""
        self._penalised = self._noise = None

    def state_dict(self) -> dict[str, Any]:
        """Return the place on the schedule, and where the noise is drawn from."""
        return {"step": self._step, "steps": self._steps, "noise": self._generators.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, which may be part of more."""
        self._step = int(state["step"])
        self._steps = None if state["steps"] is None else int(state["steps"])
        self._generators.load_state_dict(state["noise"])
        self.unbind()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_penalised": None, "_noise": None}


def _steps(strategy: Any) -> int:
    """Return how many steps a strategy takes until the next boundary that it is told of."""
    experience = strategy.experience
    online = hasattr(experience, "access_task_boundaries")
    try:
        number = len(strategy.dataloader)
    except TypeError:
        number = 0
    if number == 0 or (online and not experience.access_task_boundaries):
        raise UserError("DemonPruningPlugin: the number of steps is not known in this stream; give total_steps")
    return int(strategy.train_epochs) * number * int(experience.sub_stream_length if online else 1)
