"""Hyper- and hypo-units as an Avalanche plugin."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroup, UnitGroups, unwrap
from plasticity.methods.hyper_hypo import choose_entries, prune_units
from plasticity.methods.hyper_hypo_units import HyperHypoRule, Mode, Saliency, Select, Selection, Units
from plasticity.methods.self_labels import SelfLabels
from plasticity.methods.treatment import Treatment
from plasticity.plugins.base import TreatmentPlugin
from plasticity.plugins.beside import starts_anew
from plasticity.probe import Probe
from plasticity.surgery.freezing import PartialTraining
from plasticity.surgery.masks import BoundMasks, Masks
from plasticity.values import in_range

SelfLabel = bool | Literal["all"]


class HyperHypoPlugin(TreatmentPlugin):
    """Before each experience but the first, single out the units that are active most of the time or hardly ever.

    Mode "adapt": in the first fifth of the experience only these units learn, by their incoming weights and bias. All
    else stays bit-equal: other units, the head, normalisers and their running statistics, and the optimizer state of
    it all, with dropout off; see `plasticity.surgery.freezing.PartialTraining`. Then the whole network learns. Where no
    unit is chosen, it does so from the start.

    Mode "prune": their outgoing weights are removed for good, in private groups.

    This is our reconstruction: the paper has no formula. `plasticity.methods.hyper_hypo` says what of it is ours.

    Args:
        mode: "adapt" or "prune".
        saliency: "frequency", "mean_abs", "std" or "entropy"; see `plasticity.methods.hyper_hypo_units.HyperHypoRule`.
        select: "percentile" or "bounds".
        percent: Units at each end, in percent of the layer, in [0, 50]; above 0, at least one.
        low: With "bounds", the saliency up to which a unit is hypo; None: 0.05 of the samples.
        high: With "bounds", the saliency from which on it is hyper; None: 0.95 of the samples.
        units: "both", "hyper", "hypo", or as a control "random": as many units of each layer as lie at both ends.
        adapt_share: Share of an experience in which "adapt" trains the chosen units alone, in [0, 1]: of its
            mini-batches over all epochs, rounded up, so 2 epochs of 10. An online stream that tells its boundaries
            counts those between two of them.
        maximum_pruned: Largest share of a layer that "prune" may silence over the stream, in [0, 1].
        self_label: Whether the chosen units learn without labels while they learn alone: from the network's own
            predictions in place of the labels. "all": so does the whole network after that, and in mode "prune": no
            label is used after the first experience. It is meant for experiences that bring the same classes in another
            domain. All samples of a mini-batch count as unlabelled, also those of a replay memory.
        confident_share: Share of each mini-batch that `self_label` keeps, in (0, 1], rounded up: those with the largest
            margin between the two largest probabilities.
        probe_samples: On how many training samples units are judged, at most.
        seed: Seed of the plugin's own random generator, used by `units="random"` alone.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
            They learn as always while other units learn alone.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.

    Attributes:
        rule: The arguments that say how units are chosen; see `plasticity.methods.hyper_hypo.HyperHypoRule`.
        selections: The units found last, by group name.
        masks: The outgoing connections that "prune" has removed.
        pruned: (size,) bool by group name, True for the units that "prune" has silenced.
        history: For every intervention which units were treated, how many were hyper and hypo, and more; with
            `self_label` also how many iterations after it were "self_labelled".

    Raises:
        UserError: If an argument has no meaning; while training with `self_label`, if the strategy computes its loss
            by anything but its criterion, or if there are no logits of at least two classes.

    Source: Mitra and Franco 2020, arXiv 2001.01755; `self_label` after arXiv 1802.06861.
    """

    method = "hyper-hypo"
    knows_units = True

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
        self_label: SelfLabel = False,
        confident_share: float = 0.5,
        probe_samples: int = 2048,
        seed: int = 0,
        groups: Iterable[UnitGroup] | None = None,
        exclude: Exclude = None,
        dry_run: bool = False,
    ) -> None:
        super().__init__(
            every="experience", probe_samples=probe_samples, seed=seed, groups=groups, exclude=exclude, dry_run=dry_run
        )
        self.rule = HyperHypoRule(mode, saliency, select, percent, low, high, units, maximum_pruned)
        in_range("adapt_share", adapt_share, 0, 1)
        if not isinstance(self_label, bool) and self_label != "all":
            raise UserError(f'self_label must be False, True or "all", not {self_label!r}')
        if self_label is True and mode == "prune":
            raise UserError('no units learn alone in mode "prune": self_label must be False or "all"')
        if in_range("confident_share", confident_share, 0, 1) == 0:
            raise UserError("confident_share must lie above 0")
        self.acts = ("removes" if mode == "prune" else "alone", *(("labels",) if self_label else ()))
        self.adapt_share = adapt_share
        self.self_label = self_label
        self.confident_share = confident_share
        self.selections: dict[str, Selection] = {}
        self.masks = Masks()
        self.pruned: dict[str, Tensor] = {}
        self._entries: dict[str, Tensor] = {}
        self._iterations_left: int | None = 0  # of the stage; None: still to be counted
        self._stage: PartialTraining | None = None
        self._bound: BoundMasks | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._labels: SelfLabels | None = None  # in the place of the criterion while a loss is computed

    def treat(
        self, model: nn.Module, units: UnitGroups, probe: Probe, optimizer: Optimizer, generator: torch.Generator
    ) -> Treatment:
        """Choose units, and prune them in mode "prune"."""
        self._bound = None
        if self.rule.mode == "prune":
            report, self.selections = prune_units(
                model, units, probe, self.masks, self.pruned, self.rule, optimizer, generator, self._removed
            )
        else:
            report, self.selections, self._entries = choose_entries(
                model, units, probe, self.rule, generator, self._removed
            )
            if self._entries:
                spared = self.excluded.tensors(model)
                parameters = unwrap(model).named_parameters()
                whole = {name: torch.ones_like(each, dtype=torch.bool) for name, each in parameters if each in spared}
                self._entries.update((name, mask.cpu()) for name, mask in whole.items())
        return report

    # --- Avalanche's callbacks ---------------------------------------------------------------------------------

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Treat between experiences; masks follow the model that is now in place."""
        adapting = [plugin for plugin in strategy.plugins if isinstance(plugin, HyperHypoPlugin)]
        if sum(plugin.rule.mode == "adapt" for plugin in adapting) > 1:
            raise UserError(
                'a strategy can have one HyperHypoPlugin(mode="adapt"): each lets nothing but its own units learn'
            )
        self._end_stage()
        self._bound = None
        self.masks.prune_missing(strategy.model)
        if starts_anew(strategy, strategy.model, self._model):  # as with GDumb
            self.masks, self.pruned = Masks(), {}
        self._model = weakref.ref(strategy.model)
        treatments = len(self.history)
        super().before_training_exp(strategy, *args, **kwargs)
        self.masks.apply(strategy.model)
        if len(self.history) > treatments and "withheld" in self.history[-1]:
            self._entries, self._iterations_left = {}, 0
        elif len(self.history) > treatments:
            self._iterations_left = None
            if self.self_label and not self.dry_run:
                self.history[-1]["self_labelled"] = 0

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin to train the chosen units alone, now that other plugins have had their say on the data."""
        if self._entries and self._iterations_left is None:
            self._iterations_left = math.ceil(self.adapt_share * _mini_batches(strategy) - 1e-9)
        self._begin_stage(strategy)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Go on training them alone, if a state was loaded in the middle of that."""
        self._begin_stage(strategy)

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Let predictions stand in for labels, for this loss alone: other plugins use the criterion at other times."""
        alone = self.self_label is True and self._stage is not None
        if alone or (self.self_label == "all" and self.reported and not self.dry_run):
            self._labels = SelfLabels(strategy._criterion, self.confident_share)
            strategy._criterion = self._labels

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Put the criterion back in its place."""
        if self._labels is None:
            return
        labels, self._labels = self._labels, None
        strategy._criterion = labels.criterion
        if not labels.calls:
            raise UserError(
                f"{type(strategy).__name__} does not compute its loss by its criterion, so self_label has no effect"
            )
        self.history[-1]["self_labelled"] = self.history[-1].get("self_labelled", 0) + 1

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

    def _begin_stage(self, strategy: Any) -> None:
        if self._entries and self._iterations_left and self._stage is None:
            self._stage = PartialTraining(strategy.model, strategy.optimizer, self._entries)
            self._stage.attach()

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
        """Take over what `state_dict` returned."""
        self._end_stage()
        self._bound = None
        super().load_state_dict(state)
        self._model = None
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
        return {**super().__getstate__(), "_model": None, "_stage": None, "_bound": None, "_labels": None}


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
