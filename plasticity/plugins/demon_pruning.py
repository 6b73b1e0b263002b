"""Demon pruning as an Avalanche plugin."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.distributed import batches_of_all, group_of
from plasticity.errors import UserError
from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.demon_masks import BoundPrunedUnits, PrunedUnits
from plasticity.methods.demon_pruning import PRESETS, Mode, Pruning, prune_dead_units
from plasticity.methods.treatment import Treatment
from plasticity.plugins.arguments import choose_rule
from plasticity.plugins.base import Every, TreatmentPlugin
from plasticity.plugins.beside import starts_anew
from plasticity.plugins.demon_push import Push
from plasticity.plugins.following import follow_removal, refuse_followers
from plasticity.plugins.inputs import model_inputs
from plasticity.plugins.removed import removed_by
from plasticity.preview import Preview
from plasticity.probe import Probe, RecentInputs, balanced
from plasticity.surgery.masks import Masks
from plasticity.surgery.removal import Removal
from plasticity.units import find_units
from plasticity.values import check_count

POOL = 2
"""How many times as many recent samples are kept as units are judged on, so that classes can be balanced."""


class DemonPruningPlugin(TreatmentPlugin):
    """Let units die on purpose and prune the dead ones, so that the network becomes sparse, or smaller and faster.

    A penalty on normaliser scales (or incoming weights) and noise on the weights of live units push units to die, both
    on a one-cycle schedule over each experience. Units that are 0 on a probe of training samples are pruned: the
    outputs on the probe stay equal. `plasticity.methods.demon_pruning` says what differs from the source and why.

    A unit is live if it fired in the strategy's latest training forward pass. The noise is added to the finished
    update, past momentum and Adam. With `regularisation` and `noise_std` both 0 the plugin does nothing at all.

    Args:
        mode: "mask" keeps pruned units at 0, on any architecture; "shrink" removes private ones physically, with the
            optimizer's state of them, and masks the others.
        preset: "default", or "dufortlabbe2024" for the authors' gate.
        every: When to prune: "epoch", "experience" (before each but the first) or a number of iterations.
        total_steps: Number of training steps over which one cycle extends; None: one cycle for each experience.
        probe_samples: On how many training samples units are judged, at most: recent ones, with classes in equal
            numbers as far as there are. Twice as many are kept.
        seed: Seed of the noise.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: Replace single values of the preset: `regularisation`, `noise_std`, `span`, `regularise`, `gate`; see
            `plasticity.methods.demon_pruning.DemonRule`.

    Attributes:
        rule: How units are pushed.
        pruned: The pruned units that are still in place, and their masks.
        history: For every intervention how many units were dead, masked, removed and left, and more; `left_because`
            says by group name why units were not removed or not pruned.

    Raises:
        UserError: If an argument has no meaning; while training, if another plugin cannot follow a removal.

    Source: Dufort-Labbé et al. 2024, arXiv 2403.07688.
    """

    method = "demon-pruning"

    def __init__(
        self,
        mode: Mode = "mask",
        *,
        preset: str = "default",
        every: Every = "epoch",
        total_steps: int | None = None,
        probe_samples: int = 2048,
        seed: int = 0,
        groups: Iterable[UnitGroup] | None = None,
        exclude: Exclude = None,
        dry_run: bool = False,
        **rule: Any,
    ) -> None:
        super().__init__(
            every=every, probe_samples=probe_samples, seed=seed, groups=groups, exclude=exclude, dry_run=dry_run
        )
        if mode not in get_args(Mode):
            raise UserError(f"unknown mode {mode!r}; there are: {', '.join(get_args(Mode))}")
        if mode == "shrink" and groups is not None:
            raise UserError('mode="shrink" finds the units again after each removal: it takes no groups made by hand')
        if total_steps is not None:
            check_count("total_steps", total_steps)
        self.mode: Mode = mode
        self.acts = ("moves", "removes", "shrinks") if mode == "shrink" else ("moves", "removes")
        self.rule = choose_rule(self, PRESETS, preset, rule)
        self.total_steps = total_steps
        self.pruned = PrunedUnits()
        self._labels = RecentInputs(probe_samples)
        self._push = Push(self.rule, total_steps, seed, self.groups, self.excluded, idle=self.dry_run)
        self._done: Pruning | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._bound: BoundPrunedUnits | None = None

    @property
    def active(self) -> bool:
        """Whether anything pushes units to die."""
        return self.rule.regularisation > 0 or self.rule.noise_std > 0

    @property
    def masks(self) -> Masks:
        """The removed weights of pruned units that are still in place."""
        return self.pruned.masks

    def strength(self, peak: float) -> float:
        """Return the present value of a peak strength on the one-cycle schedule; 0 where nothing is to be done."""
        return self._push.strength(peak)

    def treat(
        self, model: nn.Module, units: UnitGroups, probe: Probe, optimizer: Optimizer, generator: torch.Generator
    ) -> Treatment:
        """Prune the units that are dead on a balanced part of the probe."""
        labels = [batch[0] for batch in batches_of_all(self._labels.batches(), self._labels.limit, group_of(model))]
        chosen = balanced(probe, torch.cat(labels) if labels else torch.empty(0), self.probe_samples)
        self._done = prune_dead_units(model, units, chosen, self.pruned, self.mode, optimizer)
        return self._done.report

    # --- Avalanche's callbacks ---------------------------------------------------------------------------------

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin a cycle; masks follow the model that is now in place."""
        self._unbind()
        if not self.active:
            return
        self.pruned.prune_missing(strategy.model)
        replaced = starts_anew(strategy, strategy.model, self._model)
        if replaced and (len(self.masks) == 0 or self.pruned.disturbed(strategy.model)):  # it starts anew, as GDumb's
            self.pruned = PrunedUnits()
        self._model = weakref.ref(strategy.model)
        if self.mode == "shrink":
            refuse_followers(self, strategy)
        super().before_training_exp(strategy, *args, **kwargs)
        self._recent.limit = min(POOL * self.probe_samples, self._online or len(strategy.adapted_dataset))
        self._labels.limit = self._recent.limit
        self._push.begin_experience(strategy)

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count the steps of the cycle, now that other plugins have had their say on the data."""
        if self.active and self.mode == "shrink":
            refuse_followers(self, strategy)  # who keeps numbers since this experience began
        if self.active:
            self._push.count_steps(strategy)

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Watch the strategy's own forward pass, to see which units are live."""
        self._push.before_forward(strategy)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Make ready to see by how much the loss is scaled."""
        self._push.before_backward(strategy)

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the gradient of the penalty."""
        self._push.penalise(strategy, self._present_units, self)

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep pruned units out of the gradient."""
        if self._bound is None:
            self._bound = BoundPrunedUnits(self.pruned, strategy.model)
        self._bound.mask_gradients()

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the noise, and keep pruned units at 0."""
        if self._push.add_noise(strategy, self._present_units):
            for removed in removed_by(strategy):  # by others: the noise may have hit it
                if removed is not self.pruned:
                    removed.apply(strategy.model)
        if self._bound is not None:
            self._bound.apply()
        self._push.advance()

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the latest inputs with their labels, and prune if it is time."""
        if self.active:
            self._labels.add((strategy.mb_y,))
            super().after_training_iteration(strategy, *args, **kwargs)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Prune after each epoch, if asked for."""
        if self.active:
            super().after_training_epoch(strategy, *args, **kwargs)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Leave no hook on the model between experiences, and hold none of its parameters."""
        self._push.look_away()
        self._unbind()

    def intervene(self, strategy: Any) -> None:
        """Prune now and report it."""
        if self.mode == "shrink":
            refuse_followers(self, strategy)
        super().intervene(strategy)
        done, self._done = self._done, None
        if done is not None and done.left:
            self.history[-1]["left_because"] = done.left

    def tell_others(self, strategy: Any, report: Treatment) -> None:
        """Let whatever is kept for single units or weights follow a removal."""
        self._unbind()
        if self._done is not None and self._done.removal is not None:
            self._units = None
            follow_removal(self, strategy, self._done.removal)

    def learn_from(self, trial: DemonPruningPlugin) -> None:
        """Keep what was left alone, and why."""
        self._done = trial._done

    def preview(
        self,
        model: nn.Module,
        batches: Iterable[Tensor | tuple[Any, ...]],
        optimizer: Optimizer | None = None,
    ) -> Preview:
        """Say what would be pruned now; arguments as for every plugin. Without labels classes are not balanced."""
        unlabelled = copy.deepcopy(self)
        unlabelled._labels = RecentInputs(self.probe_samples)
        return super(DemonPruningPlugin, unlabelled).preview(model, batches, optimizer)

    def follow_removal(self, strategy: Any, removal: Removal) -> None:
        """Go along with units that another plugin has removed physically."""
        self.pruned.follow(removal)
        self._units = None
        self._unbind()

    # --- helpers -----------------------------------------------------------------------------------------------

    def _unbind(self) -> None:
        self._push.unbind()
        self._bound = None

    def _present_units(self, strategy: Any) -> UnitGroups:
        if self._units is None:
            units = self.groups if self.groups is not None else self._push.watched
            if units is None:
                units = find_units(strategy.model, Probe([model_inputs(strategy)]).example())
            self._units = self.excluded.treatable(strategy.model, units)
        return self._units

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, with the pruned units and the place on the schedule."""
        return {
            **super().state_dict(),
            "pruned": self.pruned.state_dict(),
            **self._push.state_dict(),
            "labels": [batch[0].clone() for batch in self._labels.batches()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned between two experiences; the model is as small then as it was."""
        super().load_state_dict(state)
        self.pruned.load_state_dict(state["pruned"])
        self._push.load_state_dict(state)
        self._labels = RecentInputs(self._recent.limit)
        for labels in state["labels"]:
            self._labels.add((labels,))
        self._model = None
        self._unbind()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_bound": None, "_model": None}
