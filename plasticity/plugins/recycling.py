"""What the plugins share that make single units new."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from plasticity.groups import UnitGroups
from plasticity.methods.recycling import initial_values, skipped_groups
from plasticity.methods.treatment import Treatment
from plasticity.plugins.base import TreatmentPlugin
from plasticity.plugins.following import tell

Rule = TypeVar("Rule")


class RecyclingPlugin(TreatmentPlugin):
    """A plugin that makes units of private groups new, with weights like those it found when it first saw the model.

    The first report in `history` has the groups that are left alone, and why, under "skipped". Connections that other
    plugins have removed stay removed, and units that they have removed are neither judged nor made new.

    Args:
        **settings: As for `TreatmentPlugin`.
    """

    knows_units = True
    needs_private = True
    acts: Collection[str] = ("renews",)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._initial: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the first weights, and treat if it is time."""
        self.remember(strategy.model)
        super().before_training_exp(strategy, *args, **kwargs)

    def remember(self, model: nn.Module) -> None:
        """Keep the weights of a model that has not been seen before; they are needed on its device."""
        if not self._initial:
            self._initial = initial_values(model)
        device = next((parameter.device for parameter in model.parameters()), None)
        self._initial = {name: value.to(device) for name, value in self._initial.items()}

    def intervene(self, strategy: Any) -> None:
        """Treat the network now and report it."""
        super().intervene(strategy)
        if self._units is not None:
            self.note_skipped(self._units)

    def tell_others(self, strategy: Any, report: Treatment) -> None:
        """Tell plugins that keep the ages of units which ones are new."""
        tell(self, strategy, "follow_new_units", report.units)

    def take_hold(self, model: nn.Module) -> None:
        """Keep the weights that fresh ones are drawn like, if there are none yet."""
        self.remember(model)

    def note_skipped(self, units: UnitGroups) -> None:
        """Say in the first report which groups are left alone."""
        if self.reported == 1 and self.history and "skipped" not in self.history[0]:
            self.history[0]["skipped"] = {**skipped_groups(units), **self._left_alone}

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, the first weights among it."""
        return {**super().state_dict(), "initial": {name: value.clone() for name, value in self._initial.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self._initial = {name: value.clone() for name, value in state["initial"].items()}
