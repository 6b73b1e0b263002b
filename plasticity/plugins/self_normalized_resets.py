"""Self-normalized resets as an Avalanche plugin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.latest_activity import MagnitudeActivity
from plasticity.methods.self_normalized_resets import PRESETS, SILENT_ACTIVATIONS, SelfNormalizedResets
from plasticity.plugins.arguments import choose_rule
from plasticity.plugins.removed import removed_units
from plasticity.plugins.stepwise import StepwisePlugin


class SelfNormalizedResetsPlugin(StepwisePlugin):
    """Make units new that are silent for longer than is usual for them; ReLU units only.

    Args:
        preset: "default", or "farias2025": due units are made new at once, after any number of silent stretches, with
            Adam's moments zeroed.
        seed: Seed of the plugin's own random generator.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: Replace single values of the preset: `percentile`, `maximum_age`, `refresh`, `expansion`, `enough`,
            `check_every`, `maximum_share`, `moments`; see
            `plasticity.methods.self_normalized_resets.SelfNormalizedResetsRule`.

    Attributes:
        history: For every experience which units were made new, and how often in all.

    Raises:
        UserError: If an argument is unknown or has no meaning.

    Source: Farias and Jozefiak 2025, arXiv 2410.20098.
    """

    method = "self-normalized-resets"

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
        self._method = SelfNormalizedResets(self.rule)

    def make_activity(self, model: nn.Module, units: UnitGroups) -> MagnitudeActivity:
        """Return what sees which units fire."""
        return MagnitudeActivity(model, units, activations=SILENT_ACTIVATIONS)

    def step(self, strategy: Any, activity: Any, generator: torch.Generator) -> bool:
        """Judge units by the latest pass, and make new those that are due."""
        return self._method.step(
            strategy.model,
            activity.units,
            activity.latest,
            self._batch,
            strategy.optimizer,
            generator,
            self._initial,
            removed_units(strategy),
        )

    def follow_new_units(self, strategy: Any, units: Mapping[str, Sequence[int]]) -> None:
        """Let units be young that another plugin has made new."""
        self._method.begin_anew(units)

    def replacements(self) -> dict[str, list[int]]:
        """Return how often each unit was made new since the last call, by group name."""
        return self._method.replacements()

    def forget(self) -> None:
        """Forget what is known of units."""
        self._method = SelfNormalizedResets(self.rule)

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, ages and thresholds among it."""
        return {**super().state_dict(), "ages": self._method.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self._method.load_state_dict(state["ages"])
