"""Synaptic stripping as an Avalanche plugin."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.synaptic_stripping import PRESETS, strip_dead_units
from plasticity.methods.treatment import Treatment
from plasticity.plugins.arguments import choose_rule
from plasticity.plugins.base import Every, TreatmentPlugin
from plasticity.plugins.beside import starts_anew
from plasticity.probe import Probe
from plasticity.surgery.masks import BoundMasks, Masks
from plasticity.surgery.removal import Removal


class SynapticStrippingPlugin(TreatmentPlugin):
    """Strip the most negative incoming connections of dead units, for good, so that they fire again.

    Removed connections stay at 0 through momentum, Adam and weight decay. Preset "default" is the rule that works with
    inputs of either sign, convolutions, normalisers and stubborn biases, between experiences; "whitaker2023" is the
    authors' rule, after every epoch. `plasticity.methods.synaptic_stripping` says where the two differ and why.

    Args:
        preset: "default" or "whitaker2023".
        every: "experience", "epoch" or a number of iterations; None: as the preset.
        probe_samples: On how many training samples units are judged, at most.
        seed: Seed of the plugin's own random generator, used by `fallback="reinitialise"` alone.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: Replace single values of the preset: `fraction`, `score`, `guard`, `fallback`, `max_row_sparsity`,
            `rounds`, `clean_optimizer`; see `plasticity.methods.synaptic_stripping.StrippingRule`.

    Attributes:
        masks: The removed connections.
        history: For every intervention how many units were dead, stripped and revived, and more.

    Raises:
        UserError: If an argument is unknown or has no meaning.

    Source: Whitaker and Whitley 2023, arXiv 2302.05818.
    """

    method = "synaptic-stripping"
    acts = ("removes",)

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
            every = "epoch" if preset == "whitaker2023" else "experience"
        super().__init__(
            every=every, probe_samples=probe_samples, seed=seed, groups=groups, exclude=exclude, dry_run=dry_run
        )
        self.masks = Masks()
        self._model: weakref.ref[nn.Module] | None = None
        self._bound: BoundMasks | None = None

    def treat(
        self, model: nn.Module, units: UnitGroups, probe: Probe, optimizer: Optimizer, generator: torch.Generator
    ) -> Treatment:
        """Strip the dead units once."""
        self._bound = None
        return strip_dead_units(model, units, probe, self.masks, self.rule, optimizer, generator)

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Treat between experiences; masks follow the model that is now in place."""
        self._bound = None
        self.masks.prune_missing(strategy.model)
        replaced = starts_anew(strategy, strategy.model, self._model)
        if replaced and self.masks.disturbed(strategy.model):  # a network that starts anew, as GDumb's
            self.masks = Masks()
        self._model = weakref.ref(strategy.model)
        super().before_training_exp(strategy, *args, **kwargs)
        self.masks.apply(strategy.model)

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep removed connections out of the gradient."""
        if self._bound is None:
            self._bound = BoundMasks(self.masks, strategy.model)
        self._bound.mask_gradients()

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep removed connections at 0."""
        if self._bound is None:
            self._bound = BoundMasks(self.masks, strategy.model)
        self._bound.apply()

    def follow_removal(self, strategy: Any, removal: Removal) -> None:
        """Go along with units that another plugin has removed physically."""
        removal.slice(self.masks)
        self._bound = self._units = None

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, the masks among it."""
        return {**super().state_dict(), "masks": self.masks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self.masks.load_state_dict(state["masks"])
        self._model = self._bound = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_model": None, "_bound": None}
