"""ReDo as an Avalanche plugin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.redo import PRESETS, recycle_dormant_units
from plasticity.methods.treatment import Treatment
from plasticity.plugins.arguments import choose_rule
from plasticity.plugins.base import Every
from plasticity.plugins.recycling import RecyclingPlugin
from plasticity.probe import Probe


class ReDoPlugin(RecyclingPlugin):
    """Make dormant units new at regular times.

    Args:
        preset: "default"; "sokar2023", which zeroes Adam's moments as the authors do; or "dopamine", the values in
            their code: dead units alone, every 200,000 iterations.
        every: When: "experience", "epoch" or a number of iterations; None: as the preset, 1000 by default.
        probe_samples: On how many training samples units are judged, at most.
        seed: Seed of the plugin's own random generator.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: Replace single values of the preset: `tau`, `maximum_share`, `moments`; see
            `plasticity.methods.redo.ReDoRule`.

    Attributes:
        history: For every treatment how many units were dormant and recycled, which, and how far outputs moved.

    Raises:
        UserError: If an argument is unknown or has no meaning.

    Source: Sokar et al. 2023, arXiv 2302.12902.
    """

    method = "redo"

    def __init__(
        self,
        preset: str = "default",
        *,
        every: Every | None = None,
        probe_samples: int = 2048,
        seed: int = 0,
        groups: Iterable[UnitGroup] | None = None,
        exclude: Exclude = None,
        dry_run: bool = False,
        **rule: Any,
    ) -> None:
        self.rule = choose_rule(self, PRESETS, preset, rule)
        if every is None:
            every = 200_000 if preset == "dopamine" else 1000
        super().__init__(
            every=every, probe_samples=probe_samples, seed=seed, groups=groups, exclude=exclude, dry_run=dry_run
        )

    def treat(
        self, model: nn.Module, units: UnitGroups, probe: Probe, optimizer: Optimizer, generator: torch.Generator
    ) -> Treatment:
        """Recycle the dormant units once."""
        return recycle_dormant_units(model, units, probe, self.rule, optimizer, generator, self._initial, self._removed)
