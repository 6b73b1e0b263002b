"""What the plugins share that change whole weights between experiences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroups
from plasticity.methods.parameters import Entry
from plasticity.methods.treatment import Treatment
from plasticity.methods.whole_weights import OptimizerState, change_weights
from plasticity.plugins.base import TreatmentPlugin
from plasticity.plugins.removed import still_removed
from plasticity.probe import Probe
from plasticity.surgery.masks import Removed


class WholeWeightPlugin(TreatmentPlugin):
    """A plugin that changes whole weights before each experience but the first.

    It asks nothing of the model: there need be no hidden units. Subclasses implement `idle` and `change`.

    Args:
        optimizer_state: "clear" or "keep".
        probe_samples: On how many training samples it is seen how far the outputs move, at most.
        seed: Seed of the plugin's own random generator.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
    """

    def __init__(
        self,
        *,
        optimizer_state: OptimizerState = "clear",
        probe_samples: int = 2048,
        seed: int = 0,
        exclude: Exclude = None,
        dry_run: bool = False,
    ) -> None:
        super().__init__(every="experience", probe_samples=probe_samples, seed=seed, exclude=exclude, dry_run=dry_run)
        self.optimizer_state: OptimizerState = optimizer_state
        self._kept: tuple[Removed, ...] = ()

    # --- for subclasses ----------------------------------------------------------------------------------------

    @property
    def between(self) -> bool:
        """Whether the plugin acts before an experience."""
        return not self.idle

    @property
    def idle(self) -> bool:
        """Whether the plugin is set to change nothing; it then leaves the optimizer alone, too."""
        raise NotImplementedError

    def change(self, model: nn.Module, generator: torch.Generator) -> Sequence[Entry]:
        """Change the weights, and return which."""
        raise NotImplementedError

    # --- doing it ----------------------------------------------------------------------------------------------

    def units_of(self, model: nn.Module, example: Callable[[], tuple[Any, ...]]) -> UnitGroups:
        """Return no units: none are asked for."""
        return UnitGroups(())

    def treat(
        self, model: nn.Module, units: UnitGroups, probe: Probe, optimizer: Optimizer, generator: torch.Generator
    ) -> Treatment | None:
        """Change the weights once."""
        if self.idle:
            return None
        return change_weights(
            self.method,
            model,
            probe,
            lambda: self.change(model, generator),
            optimizer=optimizer,
            optimizer_state=self.optimizer_state,
            masks=self._kept,
            spared=self.excluded.tensors(model),
        )

    def intervene(self, strategy: Any) -> None:
        """Treat the network now; what other plugins have removed stays removed."""
        if self.idle:
            return
        self._kept = still_removed(strategy)
        try:
            super().intervene(strategy)
        finally:
            self._kept = ()
