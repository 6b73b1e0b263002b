"""Plasticity injection as an Avalanche plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from plasticity.architecture.head import find_head
from plasticity.architecture.injection import inject_plasticity
from plasticity.architecture.rewriting import parameter_count
from plasticity.errors import UserError
from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroups, unwrap
from plasticity.methods.treatment import Treatment
from plasticity.plugins.base import TreatmentPlugin
from plasticity.plugins.following import tell
from plasticity.plugins.removed import still_removed
from plasticity.probe import Probe, output_shift
from plasticity.surgery.masks import Removed
from plasticity.units import find_units
from plasticity.values import check_count, shown


class PlasticityInjectionPlugin(TreatmentPlugin):
    """Once, before a chosen experience, give the network a new head and freeze the one it has.

    Outputs stay what they were at that moment, and so does the number of trained parameters; see
    `plasticity.architecture.inject_plasticity`. Heads that grow, and heads for each task, go on growing: what is added
    later begins with the same weights in all parts.

    A run that was restored from a checkpoint must restore the whole model, as its modules have changed.

    Args:
        experience: Number of the experience before which to act, at least 1; the middle of the stream is a good one.
        head: Qualified names of the modules that make up the head, in order; None: those from the last hidden layer on.
        seed: Seed of the plugin's own random generator.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
            A head with such a layer in it is refused.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.

    Attributes:
        history: One entry, with the numbers of parameters that are trained and frozen.

    Raises:
        UserError: If the experience is not a whole number of at least 1; in training, if the head cannot be told, or
            has an excluded layer.

    Source: Nikishin et al. 2023, arXiv 2305.15555.
    """

    method = "plasticity-injection"
    acts = ("rebuilds",)

    def __init__(
        self,
        experience: int = 1,
        *,
        head: Sequence[str] | None = None,
        seed: int = 0,
        exclude: Exclude = None,
        dry_run: bool = False,
    ) -> None:
        super().__init__(every="experience", probe_samples=512, seed=seed, exclude=exclude, dry_run=dry_run)
        check_count("experience", experience)
        if head is not None and not (isinstance(head, list | tuple) and head and all(isinstance(n, str) for n in head)):
            raise UserError(f'head takes a list of names of modules, such as ["classifier"], not {shown(head)}')
        self.experience = experience
        self.head = None if head is None else tuple(head)
        self._kept: tuple[Removed, ...] = ()
        self._renewed: list[str] = []
        self._given = False

    def intervene(self, strategy: Any) -> None:
        """Act, if it is time and was not done yet."""
        experience = getattr(strategy.experience, "origin_experience", strategy.experience)
        if self._given or experience.current_experience < self.experience:
            return
        self._kept = still_removed(strategy)
        try:
            super().intervene(strategy)
        finally:
            self._kept, self._renewed = (), []
        self._given = _treated(self.history)
        self._units = None

    def tell_others(self, strategy: Any, report: Treatment) -> None:
        """Let plugins that know the head by its values follow."""
        tell(self, strategy, "follow_renewal", self._renewed)

    def _refuse_excluded(self, model: nn.Module, probe: Probe) -> None:
        network, layers = unwrap(model), self.excluded.untouched(model)
        units = find_units(network, probe.example()) if layers else UnitGroups(())
        for name in find_head(network, probe.example(), units, self.head) if layers else ():
            inside = {f"{name}.{key}" if key else name for key, _ in network.get_submodule(name).named_modules()}
            if inside & set(layers):
                found = min(inside & set(layers))
                raise UserError(
                    f"plasticity injection would replace '{name}', of which '{found}' is {layers[found]}: "
                    "name another head"
                )

    def treat(
        self, model: nn.Module, units: UnitGroups, probe: Probe, optimizer: Optimizer, generator: torch.Generator
    ) -> Treatment:
        """Inject plasticity."""
        self._refuse_excluded(model, probe)
        before = probe.outputs(model)
        names = inject_plasticity(model, probe.example(), optimizer, generator, head=self.head, removed=self._kept)
        self._renewed = [
            f"{name}.{key}" for name in names for key, _ in unwrap(model).get_submodule(name).named_parameters()
        ]
        head = [unwrap(model).get_submodule(name) for name in names]
        return Treatment(
            method=self.method,
            samples=probe.samples,
            counts={
                "trained_parameters": parameter_count(model),
                "frozen_parameters": 2 * sum(parameter.numel() for part in head for parameter in part.parameters()),
            },
            output_shift=output_shift(before, probe.outputs(model)),
        )

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, with whether it has acted."""
        return {**super().state_dict(), "given": self._given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self._given = bool(state.get("given", _treated(self.history)))  # not there in states of before


def _treated(history: Sequence[Mapping[str, Any]]) -> bool:
    return any("withheld" not in entry for entry in history)
