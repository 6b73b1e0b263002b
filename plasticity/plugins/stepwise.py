"""What the plugins share that look at units, and may make some new, after every update."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.distributed import group_of, require_agreement
from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroup, UnitGroups, unwrap
from plasticity.methods.latest_activity import LatestActivity
from plasticity.plugins.beside import starts_anew
from plasticity.plugins.observing import ForwardObserver
from plasticity.plugins.publishing import publish
from plasticity.plugins.recycling import RecyclingPlugin
from plasticity.plugins.removed import keep_removed
from plasticity.plugins.withholding import note_divergence
from plasticity.preview import Preview, keep_in_step, sizes, twins
from plasticity.probe import Probe


class StepwisePlugin(RecyclingPlugin):
    """A plugin that judges units by the strategy's own training forward passes, and acts after each update.

    Nothing is copied to the host but one report after each experience: `history` then gets an entry with the numbers
    of the units made new in it, and how often in all ("recycled"; a unit may be among them more than once). How far
    single replacements moved the outputs is not measured.

    Subclasses implement `make_activity`, `step`, `replacements`, `forget` and the state of the method.

    Args:
        seed: Seed of the plugin's own random generator.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        groups: Iterable[UnitGroup] | None = None,
        exclude: Exclude = None,
        dry_run: bool = False,
    ) -> None:
        super().__init__(seed=seed, groups=groups, exclude=exclude, dry_run=dry_run)
        self._observer = ForwardObserver(self._watching, self.groups)
        self._generator = torch.Generator()
        self._generator.set_state(self._generator_state)
        self._samples = self._batch = 0
        self._model: weakref.ref[nn.Module] | None = None
        self._twin: nn.Module | None = None  # what a dry run treats
        self._untouched: dict[str, str] = {}

    def _watching(self, model: nn.Module, units: UnitGroups) -> LatestActivity:
        return self.make_activity(model, self.treatable(model, units))

    # --- for subclasses ----------------------------------------------------------------------------------------

    @property
    def between(self) -> bool:
        """Whether the plugin acts before an experience: it does not."""
        return False

    def make_activity(self, model: nn.Module, units: Any) -> LatestActivity:
        """Return what watches the forward passes."""
        raise NotImplementedError

    def step(self, strategy: Any, activity: Any, generator: torch.Generator) -> bool:
        """Judge units by the latest pass; return whether any may have been made new, without asking the device."""
        raise NotImplementedError

    def replacements(self) -> dict[str, list[int]]:
        """Return how often each unit was made new since the last call, by group name."""
        raise NotImplementedError

    def forget(self) -> None:
        """Forget what is known of units: another model has taken their place."""
        raise NotImplementedError

    # --- Avalanche's callbacks ---------------------------------------------------------------------------------

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the first weights, and see whether the model is still the same."""
        self.remember(strategy.model)
        if starts_anew(strategy, strategy.model, self._model):  # as with GDumb
            self.forget()
        self._model = weakref.ref(strategy.model)
        self._twin = None
        untouched = self.excluded.untouched(strategy.model)
        if untouched != self._untouched:  # layers were frozen, or are no more
            self._observer.renew()
        self._untouched = untouched

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Watch the pass that comes."""
        self._observer.begin(strategy)

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Judge the units, and make new those that are due."""
        activity = self._observer.activity
        if activity is None:
            return
        self._observer.require_pass(strategy)
        self._iterations += 1
        self._batch = activity.put_together(len(strategy.mb_x), group_of(strategy.model))
        self._samples += self._batch
        if self.dry_run:
            self.step(OnTwin(strategy, self._twin_of(strategy)), activity, self._generator)
        elif self.step(strategy, activity, self._generator):
            keep_removed(strategy)
        activity.clear()

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: what there is to do is done after the update."""

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: what there is to do is done after the update."""

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Report what was done in the experience; of an online stream that tells boundaries, when it is over."""
        require_agreement(strategy.model, group_of(strategy.model), type(self).__name__)
        self._observer.end()
        self._twin = None
        if not self._shown.complete(strategy.experience) and strategy.experience.access_task_boundaries:
            return
        found = self.replacements()
        experience = int(strategy.experience.current_experience)
        recycled = sum(map(sum, found.values()))
        self.report(
            {
                "experience": experience,
                "iteration": self._iterations,
                "method": self.method,
                "samples": self._samples,
                "units": {
                    name: [unit for unit, count in enumerate(counts) if count]
                    for name, counts in found.items()
                    if any(counts)
                },
                "recycled": recycled,
                **({"dry_run": True} if self.dry_run else {}),
                **note_divergence(self, strategy),
            }
        )
        self._samples = 0
        if self.reported == 1 and self._observer.activity is not None:
            self.history[0]["skipped"] = {**self._observer.activity.skipped, **self._left_alone}
        publish(strategy, self.method, {"recycled": recycled}, dry_run=self.dry_run)

    # --- trying it ---------------------------------------------------------------------------------------------

    def _twin_of(self, strategy: Any) -> nn.Module:
        """Return a copy of the network as it is now."""
        model = unwrap(strategy.model)
        if self._twin is None:
            self._twin, _ = twins(model, None)
        keep_in_step(self._twin, model)
        return self._twin

    def preview(
        self,
        model: nn.Module,
        batches: Iterable[Tensor | tuple[Any, ...]],
        optimizer: Optimizer | None = None,
    ) -> Preview:
        """Say which units would be judged after every update. Which are made new shows in training alone.

        Args:
            model: The network.
            batches: Inputs of training mini-batches; of the first one units are found.
            optimizer: The network's optimizer.
        """
        first = [each if isinstance(each, tuple) else (each,) for each in islice(batches, 1)]
        units = self.units_of(model, Probe(first).example)
        watching = self.make_activity(unwrap(model), units)
        left_alone = {**watching.skipped, **self._left_alone}
        return Preview(self.method, None, sizes(watching.units), left_alone)

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state as tensors and plain values."""
        self._generator_state = self._generator.get_state()
        return {**super().state_dict(), "samples": self._samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self._samples = int(state["samples"])
        self._generator.set_state(self._generator_state)
        self._observer = ForwardObserver(self._watching, self.groups)
        self._model = self._twin = None

    def __getstate__(self) -> dict[str, Any]:
        self._generator_state = self._generator.get_state()
        left_out = {"_observer", "_generator", "_model", "_twin"}
        return {key: value for key, value in super().__getstate__().items() if key not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._observer = ForwardObserver(self._watching, self.groups)
        self._generator = torch.Generator()
        self._generator.set_state(self._generator_state)
        self._model = self._twin = None


class OnTwin:
    """A strategy with a copy of its network in the place of the network, and without an optimizer.

    Args:
        strategy: The strategy.
        twin: The copy.
    """

    optimizer = None

    def __init__(self, strategy: Any, twin: nn.Module) -> None:
        self._strategy, self.model = strategy, twin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)
