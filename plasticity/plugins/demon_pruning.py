"""Demon pruning as an Avalanche plugin."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, get_args

import torch
from avalanche.training.utils import _at_task_boundary
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.distributed import batches_of_all, group_of
from plasticity.errors import UserError
from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.demon_masks import BoundPrunedUnits, PrunedUnits
from plasticity.methods.demon_noise import AsymmetricNoise, NoiseGenerators, live_units
from plasticity.methods.demon_pruning import (
    PRESETS,
    Mode,
    Penalised,
    Pruning,
    add_penalty_gradient,
    penalised,
    prune_dead_units,
)
from plasticity.methods.latest_activity import MagnitudeActivity
from plasticity.methods.treatment import Treatment
from plasticity.plugins.arguments import choose_rule
from plasticity.plugins.base import Every, TreatmentPlugin
from plasticity.plugins.beside import starts_anew
from plasticity.plugins.following import follow_removal, refuse_followers
from plasticity.plugins.inputs import model_inputs
from plasticity.plugins.loss_scale import LossScale
from plasticity.plugins.observing import ForwardObserver
from plasticity.plugins.removed import removed_by
from plasticity.preview import Preview
from plasticity.probe import Probe, RecentInputs, balanced
from plasticity.schedules import one_cycle
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
        self._step = 0
        self._steps = total_steps
        self._generators = NoiseGenerators(seed)
        self._observer = ForwardObserver(partial(MagnitudeActivity, private=False), self.groups)
        self._done: Pruning | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._penalised: list[Penalised] | None = None
        self._scale = LossScale()
        self._noise: AsymmetricNoise | None = None
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
        if self.dry_run:
            return 0.0
        return one_cycle(self._step, round(self.rule.span * (self._steps or 0)), peak)

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
        if self.total_steps is None and _at_task_boundary(strategy.experience):
            self._step, self._steps = 0, None

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count the steps of the cycle, now that other plugins have had their say on the data."""
        if self.active and self.mode == "shrink":
            refuse_followers(self, strategy)  # who keeps numbers since this experience began
        if self.active and self._steps is None:
            self._steps = _steps(strategy)

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Watch the strategy's own forward pass, to see which units are live."""
        if self.rule.gate == "units" and self.strength(self.rule.noise_std) > 0:
            self._observer.begin(strategy)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Make ready to see by how much the loss is scaled."""
        if self.strength(self.rule.regularisation) > 0:
            self._scale.ask(strategy)

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the gradient of the penalty."""
        strength, scale = self.strength(self.rule.regularisation), self._scale.take(strategy, self)
        if strength > 0:
            if self._penalised is None:
                self._penalised = penalised(strategy.model, self._present_units(strategy), self.rule.regularise)
            add_penalty_gradient(self._penalised, strength, scale)

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep pruned units out of the gradient."""
        if self._bound is None:
            self._bound = BoundPrunedUnits(self.pruned, strategy.model)
        self._bound.mask_gradients()

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the noise, and keep pruned units at 0."""
        std = self.strength(self.rule.noise_std)
        if std > 0:
            if self._noise is None:
                spared = self.excluded.tensors(strategy.model)
                self._noise = AsymmetricNoise(strategy.model, self._present_units(strategy), self.rule.gate, spared)
            self._observer.require_pass(strategy)
            if self._observer.activity is not None:
                self._observer.activity.put_together(len(strategy.mb_x), group_of(strategy.model))
            self._noise.add(self._live(), std, self._generators.of(strategy.model))
            for removed in removed_by(strategy):  # by others: the noise may have hit it
                if removed is not self.pruned:
                    removed.apply(strategy.model)
        if self._bound is not None:
            self._bound.apply()
        self._step += 1

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
        self._observer.end()
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
        self._penalised = self._noise = self._bound = None

    def _present_units(self, strategy: Any) -> UnitGroups:
        if self._units is None:
            activity = self._observer.activity  # has looked at this very model if it is watched in this step
            if self.groups is not None:
                units = self.groups
            elif activity is not None and self.rule.gate == "units" and self.strength(self.rule.noise_std) > 0:
                units = activity.units
            else:
                units = find_units(strategy.model, Probe([model_inputs(strategy)]).example())
            self._units = self.excluded.treatable(strategy.model, units)
        return self._units

    def _live(self) -> dict[str, Tensor]:
        """Return which units fired in the latest passes, (size,) bool by group name, and forget these passes."""
        activity = self._observer.activity
        if activity is None:
            return {}
        live = live_units(activity)
        activity.clear()
        return live

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, with the pruned units and the place on the schedule."""
        return {
            **super().state_dict(),
            "pruned": self.pruned.state_dict(),
            "step": self._step,
            "steps": self._steps,
            "noise": self._generators.state_dict(),
            "labels": [batch[0].clone() for batch in self._labels.batches()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned between two experiences; the model is as small then as it was."""
        super().load_state_dict(state)
        self.pruned.load_state_dict(state["pruned"])
        self._step = int(state["step"])
        self._steps = None if state["steps"] is None else int(state["steps"])
        self._generators.load_state_dict(state["noise"])
        self._labels = RecentInputs(self._recent.limit)
        for labels in state["labels"]:
            self._labels.add((labels,))
        self._model = None
        self._unbind()

    def __getstate__(self) -> dict[str, Any]:
        dropped: dict[str, Any] = {
            "_penalised": None,
            "_noise": None,
            "_bound": None,
            "_model": None,
        }
        return {**super().__getstate__(), **dropped}


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
