"""Hyper- and hypo-units as an Avalanche plugin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.freezing import PartialTraining
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.masks import BoundMasks, Masks
from plasticity.methods.hyper_hypo import (
    HyperHypoRule,
    Mode,
    Saliency,
    Select,
    Selection,
    Units,
    choose_entries,
    prune_units,
)
from plasticity.methods.treatment import Treatment
from plasticity.plugins.base import TreatmentPlugin
from plasticity.probe import Probe


class HyperHypoPlugin(TreatmentPlugin):
    """Before each experience but the first, single out the units that are active most of the time or hardly ever.

    Mode "adapt": in the first fifth of the experience only these units learn, by their incoming weights and bias. All
    else stays bit-equal: other units, the head, normalisers and their running statistics, and the optimizer state of
    it all, with dropout off; see `plasticity.freezing.PartialTraining`. Then the whole network learns. Where no unit
    is chosen, it does so from the start.

    Mode "prune": their outgoing weights are removed for good, in private groups.

    This is our reconstruction: the paper has no formula. `plasticity.methods.hyper_hypo` says what of it is ours.

    Args:
        mode: "adapt" or "prune".
        saliency: "frequency" or "mean_abs".
        select: "percentile" or "bounds".
        percent: Units at each end, in percent of the layer, in [0, 50]; above 0, at least one.
        low: With "bounds", the saliency up to which a unit is hypo; None: 0.05 of the samples.
        high: With "bounds", the saliency from which on it is hyper; None: 0.95 of the samples.
        units: "both", "hyper", "hypo", or as a control "random": as many units of each layer as lie at both ends.
        adapt_share: Share of an experience in which "adapt" trains the chosen units alone, in [0, 1]: of its
            mini-batches over all epochs, rounded up, so 2 epochs of 10. An online stream that tells its boundaries
            counts those between two of them.
        maximum_pruned: Largest share of a layer that "prune" may silence over the stream, in [0, 1].
        probe_samples: On how many training samples units are judged, at most.
        seed: Seed of the plugin's own random generator, used by `units="random"` alone.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.

    Attributes:
        rule: The arguments that say how units are chosen; see `plasticity.methods.hyper_hypo.HyperHypoRule`.
        selections: The units found last, by group name.
        masks: The outgoing connections that "prune" has removed.
        pruned: (size,) bool by group name, True for the units that "prune" has silenced.
        history: For every intervention which units were treated, how many were hyper and hypo, and more.

    Raises:
        UserError: If an argument has no meaning.

    Source: Mitra and Franco 2020, arXiv 2001.01755.
    """

    method = "hyper-hypo"

    def __init__(
        self,
        mode: Mode = "adapt",
        *,
        saliency: Saliency = "frequency",
        select: Select = "percentile",
        percent: float = 5.0,
        low: float | None = None,
        high: float | None = None,
        units: Units = "both",
        adapt_share: float = 0.2,
        maximum_pruned: float = 0.5,
        probe_samples: int = 2048,
        seed: int = 0,
        groups: Iterable[UnitGroup] | None = None,
    ) -> None:
        super().__init__(every="experience", probe_samples=probe_samples, seed=seed, groups=groups)
        self.rule = HyperHypoRule(mode, saliency, select, percent, low, high, units, maximum_pruned)
        if not 0 <= adapt_share <= 1:
            raise UserError(f"adapt_share must lie in [0, 1], not {adapt_share}")
        self.adapt_share = adapt_share
        self.selections: dict[str, Selection] = {}
        self.masks = Masks()
        self.pruned: dict[str, Tensor] = {}
        self._entries: dict[str, Tensor] = {}
        self._iterations_left: int | None = 0  # of the stage; None: still to be counted
        self._stage: PartialTraining | None = None
        self._bound: BoundMasks | None = None

    def treat(
        self, model: nn.Module, units: UnitGroups, probe: Probe, optimizer: Optimizer, generator: torch.Generator
    ) -> Treatment:
        """Choose units, and prune them in mode "prune"."""
        self._bound = None
        if self.rule.mode == "prune":
            report, self.selections = prune_units(
                model, units, probe, self.masks, self.pruned, self.rule, optimizer, generator
            )
        else:
            report, self.selections, self._entries = choose_entries(model, units, probe, self.rule, generator)
        return report

    # --- Avalanche's callbacks ---------------------------------------------------------------------------------

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Treat between experiences; masks follow the model that is now in place."""
        self._end_stage()
        self._bound = None
        self.masks.prune_missing(strategy.model)
        treatments = len(self.history)
        super().before_training_exp(strategy, *args, **kwargs)
        self.masks.apply(strategy.model)
        if len(self.history) > treatments:
            self._iterations_left = None

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin to train the chosen units alone, now that other plugins have had their say on the data."""
        if not self._entries or self._stage is not None:
            return
        if self._iterations_left is None:
            self._iterations_left = math.ceil(self.adapt_share * _mini_batches(strategy) - 1e-9)
        if self._iterations_left > 0:
            self._stage = PartialTraining(strategy.model, strategy.optimizer, self._entries)
            self._stage.attach()

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

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Let the whole network learn once its time has come."""
        super().after_training_iteration(strategy, *args, **kwargs)
        if self._iterations_left:
            self._iterations_left -= 1
            if self._iterations_left == 0:
                self._end_stage()

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Leave no hook on the model between experiences."""
        self._end_stage()

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._stage.detach()
            self._stage = None

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, with masks, pruned units, selections, and what is left of the first stage."""
        return {
            **super().state_dict(),
            "masks": self.masks.state_dict(),
            "pruned": {name: mask.clone() for name, mask in self.pruned.items()},
            "selections": {
                name: {key: value.clone() for key, value in selection._asdict().items()}
                for name, selection in self.selections.items()
            },
            "entries": {name: mask.clone() for name, mask in self._entries.items()},
            "iterations_left": self._iterations_left,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned between two experiences."""
        self._end_stage()
        self._bound = None
        super().load_state_dict(state)
        self.masks.load_state_dict(state["masks"])
        self.pruned = {name: mask.cpu().to(torch.bool).clone() for name, mask in state["pruned"].items()}
        self.selections = {
            name: Selection(**{key: value.cpu().clone() for key, value in parts.items()})
            for name, parts in state["selections"].items()
        }
        self._entries = {name: mask.cpu().clone() for name, mask in state["entries"].items()}
        left = state["iterations_left"]
        self._iterations_left = None if left is None else int(left)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stage": None, "_bound": None}


def _mini_batches(strategy: Any) -> int:
    """Return how many mini-batches a strategy trains on until the next boundary that it is told of."""
    try:
        number = len(strategy.dataloader)
    except TypeError:
        raise UserError(
            "HyperHypoPlugin needs to know how many mini-batches there are: the data has no length"
        ) from None
    experience = strategy.experience
    parts = experience.sub_stream_length if getattr(experience, "access_task_boundaries", False) else None
    return int(strategy.train_epochs) * number * (parts or 1)
