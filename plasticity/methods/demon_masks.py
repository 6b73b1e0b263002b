"""Units that are pruned but stay in place, because they cannot be removed or are not to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.groups import UnitGroup, UnitGroups, layer, unwrap
from plasticity.measures import dead_units
from plasticity.probe import Probe
from plasticity.surgery import outgoing
from plasticity.surgery.masks import BoundMasks, Masks, Multipliers
from plasticity.surgery.optimizer_state import clean_state
from plasticity.surgery.removal import Removal

_BATCH_NORMS = (nn.modules.batchnorm._NormBase,)


class PrunedUnits:
    """Masks of pruned units: on all that writes them, and on the outgoing weights of private ones.

    Attributes:
        masks: Removed weights, by layer.
        vectors: True for the kept entries of biases and normaliser parameters, by qualified name.
        units: (size,) bool by group name, True for the pruned units.
        removed: How many further units are gone altogether.
    """

    def __init__(self) -> None:
        self.masks = Masks()
        self.vectors: dict[str, Tensor] = {}
        self.units: dict[str, Tensor] = {}
        self.removed = 0

    def of(self, group: UnitGroup) -> Tensor:
        """Return which units of a group are pruned already, (size,) bool on the CPU."""
        known = self.units.get(group.name)
        if known is None or len(known) != group.size:
            return torch.zeros(group.size, dtype=torch.bool)
        return known

    def mask_readers(self, model: nn.Module, group: UnitGroup, index: Tensor, optimizer: Optimizer | None) -> None:
        """Remove the outgoing weights of private units."""
        for reader in group.readers:
            self.masks.remove(model, reader.layer, outgoing(model, reader, index), optimizer)
        self._note(group, index)

    def mask_writers(self, model: nn.Module, group: UnitGroup, index: Tensor, optimizer: Optimizer | None) -> None:
        """Remove all that writes units: rows of layers and their biases, scale and shift of normalisers."""
        for name, where in writing(model, group, index).items():
            owner, _, key = name.rpartition(".")
            parameter = unwrap(model).get_parameter(name)
            if key == "weight" and parameter.dim() > 1:
                self.masks.remove(model, owner, where, optimizer)
                continue
            before = self.vectors.get(name)
            self.vectors[name] = ~where if before is None else before.to(where.device) & ~where
            with torch.no_grad():
                parameter.masked_fill_(where, 0)
            clean_state(optimizer, parameter, where, "zero")
        self._note(group, index)

    def _note(self, group: UnitGroup, index: Tensor) -> None:
        pruned = self.of(group).clone()
        pruned[index.cpu()] = True
        self.units[group.name] = pruned

    def follow(self, removal: Removal) -> None:
        """Go along with units that were removed physically."""
        removal.slice(self.masks)
        for name in self.vectors:
            owner = name.rpartition(".")[0]
            kept = removal.rows.get(owner, removal.channels.get(owner))
            if kept is not None:
                self.vectors[name] = self.vectors[name][kept.to(self.vectors[name].device)]
        for group, kept in removal.units.items():
            self.removed += int((~kept).sum())
            if group in self.units:
                self.units[group] = self.units[group][kept]

    def prune_missing(self, model: nn.Module) -> None:
        """Forget what concerns layers that the model no longer has."""
        self.masks.prune_missing(model)
        present = dict(unwrap(model).named_parameters())
        self.vectors = {
            name: kept for name, kept in self.vectors.items() if name in present and present[name].shape == kept.shape
        }

    def disturbed(self, model: nn.Module) -> bool:
        """Return whether something removed is not 0, as in a network that starts anew."""
        parameters = dict(unwrap(model).named_parameters())
        return self.masks.disturbed(model) or any(
            bool((parameters[name][~kept.to(parameters[name].device)] != 0).any())
            for name, kept in self.vectors.items()
        )

    def apply(self, model: nn.Module) -> None:
        """Set everything that is removed to 0 again."""
        BoundPrunedUnits(self, model).apply()

    def unmasked(self, model: nn.Module) -> int:
        """Return how many parameters are left."""
        total = sum(parameter.numel() for parameter in unwrap(model).parameters())
        return total - self.masks.removed() - sum(int((~kept).sum()) for kept in self.vectors.values())

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain values."""
        return {
            "masks": self.masks.state_dict(),
            "vectors": {name: kept.clone() for name, kept in self.vectors.items()},
            "units": {name: pruned.clone() for name, pruned in self.units.items()},
            "removed": self.removed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.masks.load_state_dict(state["masks"])
        self.vectors = {name: kept.clone() for name, kept in state["vectors"].items()}
        self.units = {name: pruned.cpu().clone() for name, pruned in state["units"].items()}
        self.removed = int(state["removed"])


def kept_at_zero(holders: Iterable[object]) -> tuple[Masks | PrunedUnits, ...]:
    """Return what objects, such as plugins, keep at 0 in a network."""
    found: list[Masks | PrunedUnits] = []
    for holder in holders:
        for key in ("pruned", "masks"):
            kept = getattr(holder, key, None)
            if kept is not None and isinstance(kept, (Masks, PrunedUnits)):  # asked in every step: quicker than a union
                found.append(kept)
                break
    return tuple(found)


class BoundPrunedUnits:
    """The masks of pruned units on a model as it is now: cheap in every step.

    Args:
        pruned: The masks.
        model: The network.
    """

    def __init__(self, pruned: PrunedUnits, model: nn.Module) -> None:
        self._weights = BoundMasks(pruned.masks, model)
        vectors: list[Tensor] = [unwrap(model).get_parameter(name) for name in pruned.vectors]
        kept = [mask.to(vector.device) for vector, mask in zip(vectors, pruned.vectors.values(), strict=True)]
        self._vectors = Multipliers(vectors, kept)

    def apply(self) -> None:
        """Set everything that is removed to 0 again."""
        self._weights.apply()
        self._vectors.apply()

    def mask_gradients(self) -> None:
        """Set the gradient of everything that is removed to 0."""
        self._weights.mask_gradients()
        self._vectors.mask_gradients()


def writing(model: nn.Module, group: UnitGroup, index: Tensor) -> dict[str, Tensor]:
    """Return what has to be 0 so that nothing is written to some units any more.

    Behind a normaliser these are its scale and shift, and the row before it only where the normaliser treats each
    channel by itself. Otherwise the row and its bias.

    Args:
        model: The network.
        group: A group of it.
        index: (n,) numbers of units.

    Returns:
        By qualified name of a parameter, a boolean tensor of its shape.
    """
    found: dict[str, Tensor] = {}
    for write in group.writes:
        norm = None if write.norm is None else unwrap(model).get_submodule(write.norm)
        if norm is not None and write.norm_rows is not None and isinstance(norm.weight, nn.Parameter):
            for key, parameter in norm.named_parameters(recurse=False):
                if key in ("weight", "bias"):
                    _mark(found, f"{write.norm}.{key}", parameter, write.norm_rows[index.cpu()])
            if not isinstance(norm, _BATCH_NORMS):
                continue
        for key, parameter in layer(model, write.layer).named_parameters(recurse=False):
            if key in ("weight", "bias"):
                _mark(found, f"{write.layer}.{key}", parameter, write.rows[index.cpu()])
    return found


def _mark(found: dict[str, Tensor], name: str, parameter: Tensor, rows: Tensor) -> None:
    where = found.setdefault(name, torch.zeros_like(parameter, dtype=torch.bool))
    where[rows[rows >= 0].to(parameter.device)] = True


@contextmanager
def without(model: nn.Module, units: UnitGroups, index: Mapping[str, Tensor]) -> Iterator[None]:
    """Write nothing to some units inside the block, by group name; afterwards everything is as it was."""
    marked: dict[str, Tensor] = {}
    for name, numbers in index.items():
        for key, where in writing(model, units[name], numbers).items():
            marked[key] = marked[key] | where if key in marked else where
    parameters = {name: unwrap(model).get_parameter(name) for name in marked}
    saved = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.masked_fill_(marked[name], 0)
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])


def still_dead(probe: Probe, model: nn.Module, units: UnitGroups, index: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of some dead units that stay so if nothing is written to them: by group name, (n,) numbers."""
    with without(model, units, index):
        activity, _ = probe.watch(model, units)
    dead = {name: dead_units(stat).cpu() for name, stat in activity.statistics().items()}
    kept = {name: numbers[dead[name][numbers]] for name, numbers in index.items()}
    return {name: numbers for name, numbers in kept.items() if len(numbers)}
