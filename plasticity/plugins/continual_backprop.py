"""Continual backprop as an Avalanche plugin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.continual_backprop import PRESETS, ContinualBackprop
from plasticity.methods.latest_activity import MagnitudeActivity
from plasticity.plugins.arguments import choose_rule
from plasticity.plugins.removed import removed_units
from plasticity.plugins.stepwise import StepwisePlugin


class ContinualBackpropPlugin(StepwisePlugin):
    """After every update, make the least useful mature units of each layer new, a few at a time.

    Args:
        preset: "default"; "dohare2024", the text of the paper, with Adam's moments zeroed; "dohare2024-code", with mean
            instead of summed outgoing weights; "dohare2024-resnet", the values for ResNet-18.
        seed: Seed of the plugin's own random generator.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: Replace single values of the preset: `replacement_rate`, `maturity`, `decay`, `outgoing`, `transfer`,
            `weights_every`, `moments`; see `plasticity.methods.continual_backprop.ContinualBackpropRule`.

    Attributes:
        history: For every experience which units were made new, and how often in all.

    Raises:
        UserError: If an argument is unknown or has no meaning.

    Source: Dohare et al. 2024, Nature 632.
    """

    method = "continual-backprop"

    def __init__(
        self,
        preset: str = "default",
        *,
        seed: int = 0,
        groups: Iterable[UnitGroup] | None = None,
        exclude: Exclude = None,
        dry_run: bool = False,
        **rule: Any,
    ) -> None:
        self.rule = choose_rule(self, PRESETS, preset, rule)
        super().__init__(seed=seed, groups=groups, exclude=exclude, dry_run=dry_run)
        self._method = ContinualBackprop(self.rule)

    def make_activity(self, model: nn.Module, units: UnitGroups) -> MagnitudeActivity:
        """Return what sums up magnitudes."""
        return MagnitudeActivity(model, units, means=self.rule.transfer)

    def step(self, strategy: Any, activity: Any, generator: torch.Generator) -> bool:
        """Judge units by the latest pass, and replace those that are due."""
        replaced = self._method.step(
            strategy.model,
            activity.units,
            activity.latest,
            strategy.optimizer,
            generator,
            self._initial,
            activity.signed,
            removed_units(strategy),
        )
        return replaced > 0

    def follow_new_units(self, strategy: Any, units: Mapping[str, Sequence[int]]) -> None:
        """Let units be young that another plugin has made new."""
        self._method.begin_anew(units)

    def replacements(self) -> dict[str, list[int]]:
        """Return how often each unit was made new since the last call, by group name."""
        return self._method.replacements()

    def forget(self) -> None:
        """Forget what is known of units."""
        self._method = ContinualBackprop(self.rule)

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, utilities and ages among it."""
        return {**super().state_dict(), "units": self._method.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self._method.load_state_dict(state["units"])
