"""What a method does to a network, apart from any strategy: to which units it may, and what it would do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.exclusion import Exclude, Exclusion
from plasticity.finiteness import CheckedProbe, NonFiniteError, nonfinite_weights
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.treatment import Treatment
from plasticity.preview import Preview, changed_parameters, sizes, twins
from plasticity.probe import Probe, RecentInputs
from plasticity.units import find_units
from plasticity.values import check_count, check_seed


class Treating:
    """What treats the hidden units of a network, judged on given inputs.

    Subclasses implement `treat`. Arguments and attributes are those of `plasticity.plugins.TreatmentPlugin`.
    """

    method = "treatment"

    needs_private = False
    """Whether units can be treated in private groups alone."""

    def __init__(self, *, probe_samples: int, seed: int, groups: Iterable[UnitGroup] | None, exclude: Exclude) -> None:
        check_count("probe_samples", probe_samples, 1)
        self.probe_samples = probe_samples
        self.groups = None if groups is None else UnitGroups(groups)
        self.excluded = Exclusion(exclude)
        self._generator_state = torch.Generator().manual_seed(check_seed(seed)).get_state()
        self._left_alone: dict[str, str] = {}
        self._removed: dict[str, Tensor] = {}  # units that are gone for good, but still in place

    # --- for subclasses ----------------------------------------------------------------------------------------

    def treat(
        self, model: nn.Module, units: UnitGroups, probe: Probe, optimizer: Optimizer, generator: torch.Generator
    ) -> Treatment | None:
        """Treat the network; returns what was done, or None if there is nothing to report."""
        raise NotImplementedError

    def take_hold(self, model: nn.Module) -> None:
        """Look up in a network what `treat` will need of it; by default nothing."""

    def learn_from(self, trial: Any) -> None:
        """Keep what a copy of the plugin has noted of a treatment for a report; by default nothing."""

    # --- on which units ----------------------------------------------------------------------------------------

    def units_of(self, model: nn.Module, example: Callable[[], tuple[Any, ...]]) -> UnitGroups:
        """Find the units of a model that may be treated; arguments as for `find_units`, the example only if needed.

        Raises:
            UserError: If it has none.
        """
        units = find_units(model, example()) if self.groups is None else self.groups
        if len(units) == 0:
            raise UserError(
                f"{type(self).__name__}: the model ({type(model).__name__}) has no hidden units: "
                "no Linear or Conv layer is followed by an activation"
            )
        return self.treatable(model, units)

    def treatable(self, model: nn.Module, units: UnitGroups) -> UnitGroups:
        """Return the groups that may be treated, and note why others may not.

        Args:
            model: The network.
            units: Its groups.

        Raises:
            UserError: If none may.
        """
        self._left_alone = self.excluded.left_alone(model, units)
        found = self.excluded.treatable(model, units)
        if len(units) and len(found) == 0:
            reasons = "; ".join(f"'{name}': {reason}" for name, reason in self._left_alone.items())
            what = "exclude leaves no hidden units to treat" if self.excluded else "there are no units to treat"
            raise UserError(f"{type(self).__name__}: {what}: {reasons}")
        return found

    # --- trying it ---------------------------------------------------------------------------------------------

    def preview(
        self,
        model: nn.Module,
        batches: Iterable[Tensor | tuple[Any, ...]],
        optimizer: Optimizer | None = None,
    ) -> Preview:
        """Say what would be treated now, and why. Neither the network nor the plugin changes.

        Args:
            model: The network.
            batches: Inputs of training mini-batches on which units are judged: the input, or a tuple of the model's
                positional inputs. The latest are taken where there are more samples than `probe_samples`.
            optimizer: The network's optimizer.

        Returns:
            What would be treated; `print` shows it.

        Raises:
            UserError: If the network has no units to treat, is not finite, or cannot be copied; says so for methods
                that need more than inputs, which `dry_run=True` gives them.
        """
        recent = RecentInputs(self.probe_samples)
        for batch in batches:
            recent.add(batch if isinstance(batch, tuple) else (batch,))
        reason = nonfinite_weights(model)
        if reason is not None:
            raise UserError(f"{type(self).__name__} would treat nothing: {reason}")
        probe = CheckedProbe(recent.probe().batches)
        units = self.units_of(model, probe.example)
        used = optimizer if optimizer is not None else torch.optim.SGD([nn.Parameter(torch.zeros(()))])
        try:
            return self._rehearse(model, units, probe, used, self._own_generator())
        except NonFiniteError as found:
            raise UserError(f"{type(self).__name__} would treat nothing: {found}") from None

    def _rehearse(
        self,
        model: nn.Module,
        units: UnitGroups,
        probe: Probe,
        optimizer: Optimizer,
        generator: torch.Generator,
        strategy: Any = None,
    ) -> Preview:
        """Let a copy of the plugin treat a copy of the network."""
        network, copied = twins(model, optimizer)
        cuda = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
        trial = copy.deepcopy(self, {id(strategy): strategy})
        trial.take_hold(network)
        with torch.random.fork_rng(devices=cuda):
            report = trial.treat(network, units, probe, copied, generator)
        self.learn_from(trial)
        written = changed_parameters(model, network)
        left_alone = {group.name: str(group.reason) for group in units if self.needs_private and not group.private}
        treatable = UnitGroups(group for group in units if group.name not in left_alone)
        return Preview(self.method, report, sizes(treatable), {**left_alone, **self._left_alone}, written)

    def _own_generator(self) -> torch.Generator:
        """Return a generator in the state of the plugin's own."""
        generator = torch.Generator()
        generator.set_state(self._generator_state)
        return generator
