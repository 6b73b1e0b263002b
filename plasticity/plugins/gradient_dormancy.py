"""Gradient dormancy as an Avalanche plugin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.distributed import group_of
from plasticity.errors import UserError
from plasticity.exclusion import Exclude
from plasticity.finiteness import NonFiniteError, all_finite
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.gradient_dormancy import PRESETS, recycle_gradient_dormant_units
from plasticity.methods.latest_activity import BatchSums, GradientActivity, sums_of_all
from plasticity.methods.treatment import Treatment
from plasticity.plugins.arguments import choose_rule
from plasticity.plugins.base import Every
from plasticity.plugins.loss_scale import LossScale
from plasticity.plugins.observing import ForwardObserver
from plasticity.plugins.recycling import RecyclingPlugin
from plasticity.preview import Preview
from plasticity.probe import Probe
from plasticity.values import check_count


class GradientDormancyPlugin(RecyclingPlugin):
    """Make units new that hardly get a gradient, at regular times.

    Gradients are those of the strategy's own backward passes, of the latest mini-batches before a treatment.

    Args:
        preset: "default", or "liu2025", which zeroes Adam's moments.
        every: When: "experience", "epoch" or a number of iterations.
        batches: In how many mini-batches gradients are collected, the latest ones.
        probe_samples: On how many training samples the shift of outputs is measured, at most.
        seed: Seed of the plugin's own random generator.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: Replace single values of the preset: `tau`, `gradient`, `maximum_share`, `moments`; see
            `plasticity.methods.gradient_dormancy.GradientDormancyRule`.

    Attributes:
        history: For every treatment how many units were dormant and recycled, which, and how far outputs moved.

    Raises:
        UserError: If an argument is unknown or has no meaning.

    Source: Liu et al. 2025, arXiv 2505.24061.
    """

    method = "gradient-dormancy"

    def __init__(
        self,
        preset: str = "default",
        *,
        every: Every = 1000,
        batches: int = 16,
        probe_samples: int = 2048,
        seed: int = 0,
        groups: Iterable[UnitGroup] | None = None,
        exclude: Exclude = None,
        dry_run: bool = False,
        **rule: Any,
    ) -> None:
        self.rule = choose_rule(self, PRESETS, preset, rule)
        check_count("batches", batches, 1)
        super().__init__(
            every=every, probe_samples=probe_samples, seed=seed, groups=groups, exclude=exclude, dry_run=dry_run
        )
        self.batches = batches
        self._collected: list[tuple[int, dict[str, BatchSums]]] = []
        self._observer = ForwardObserver(self._watching, self.groups)
        self._scale = LossScale()
        self._untouched: dict[str, str] = {}
        self._watched_at: Tensor | None = None  # the scale of the loss

    def _watching(self, model: nn.Module, units: UnitGroups) -> GradientActivity:
        return GradientActivity(model, self.treatable(model, units), before=self.rule.gradient == "before")

    def treat(
        self, model: nn.Module, units: UnitGroups, probe: Probe, optimizer: Optimizer, generator: torch.Generator
    ) -> Treatment:
        """Recycle the units that hardly got a gradient.

        Raises:
            NonFiniteError: If the gradients of no mini-batch are finite.
        """
        collected, self._collected = self._collected, []
        totals: dict[str, BatchSums] = {}
        finite = _finite(collected)  # a gradient scaler has passed over the others
        for _, sums in finite:
            for name, part in sums.items():
                before = totals.get(name)
                if before is None or before.values.shape != part.values.shape:
                    totals[name] = part
                else:
                    totals[name] = BatchSums(before.values + part.values, before.count + part.count)
        samples = sum(number for number, _ in finite)
        if group_of(model) is not None:
            (totals,), samples = sums_of_all([totals], units, samples, group_of(model))
        if collected and not totals:
            raise NonFiniteError(f"all gradients of the latest {len(collected)} mini-batches are NaN or infinite")
        return recycle_gradient_dormant_units(
            model, units, totals, samples, probe, self.rule, optimizer, generator, self._initial, self._removed
        )

    def preview(
        self,
        model: nn.Module,
        batches: Iterable[Tensor | tuple[Any, ...]],
        optimizer: Optimizer | None = None,
    ) -> Preview:
        """Say what would be treated by the gradients seen last; otherwise as for every plugin.

        Args:
            model: The network.
            batches: Inputs of training mini-batches, on which the shift of outputs is measured.
            optimizer: The network's optimizer.

        Raises:
            UserError: If no gradients were seen.
        """
        if not self._collected:
            raise UserError(
                "GradientDormancyPlugin has seen no gradients yet, which only training brings: train with "
                "GradientDormancyPlugin(dry_run=True)"
            )
        return super().preview(model, batches, optimizer)

    # --- Avalanche's callbacks ---------------------------------------------------------------------------------

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Treat if it is time, and see which layers are frozen now."""
        untouched = self.excluded.untouched(strategy.model)
        if untouched != self._untouched:
            self._observer.renew()
        self._untouched = untouched
        super().before_training_exp(strategy, *args, **kwargs)

    @property
    def _near(self) -> bool:
        """Whether a treatment is so near that gradients count for it."""
        return not isinstance(self.every, int) or self.every - self._iterations % self.every <= self.batches

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Watch the pass that comes, if a treatment is near."""
        if self._near:
            self._observer.begin(strategy)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Make ready to see by how much the loss is scaled."""
        if self._near:
            self._scale.ask(strategy)

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Note the scale of the loss."""
        self._watched_at = self._scale.take(strategy, self)

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the gradients of the latest mini-batches, in units of the loss."""
        activity = self._observer.activity
        self._observer.require_pass(strategy)
        if activity is not None and activity.latest:
            scale = 1.0 if self._watched_at is None else self._watched_at
            latest = {name: BatchSums(each.values / scale, each.count) for name, each in activity.latest.items()}
            self._collected = [*self._collected, (len(strategy.mb_x), latest)][-self.batches :]
            activity.clear()

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take every hook off the model."""
        self._observer.end()

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, the latest gradients among it."""
        gradients = [
            (number, {name: (part.values.clone(), part.count) for name, part in sums.items()})
            for number, sums in self._collected
        ]
        return {**super().state_dict(), "gradients": gradients}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self._collected = [
            (int(number), {name: BatchSums(values.clone(), int(count)) for name, (values, count) in sums.items()})
            for number, sums in state["gradients"]
        ]
        self._observer = ForwardObserver(self._watching, self.groups)

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in super().__getstate__().items() if key != "_observer"}
        return {**state, "_watched_at": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._observer = ForwardObserver(self._watching, self.groups)


def _finite(collected: list[tuple[int, dict[str, BatchSums]]]) -> list[tuple[int, dict[str, BatchSums]]]:
    """Return the mini-batches whose gradients are all finite; asks the device once."""
    marks = [all_finite([part.values for part in sums.values()]) for _, sums in collected if sums]
    known = iter(torch.stack(marks).tolist() if marks else [])
    return [each for each in collected if each[1] and next(known)]
