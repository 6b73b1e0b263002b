"""What all methods share that make single units new: which units may be, and where fresh weights come from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, unwrap
from plasticity.surgery import reinitialise
from plasticity.surgery.optimizer_state import Moments


def private_groups(units: UnitGroups, activations: Collection[str] | None = None) -> UnitGroups:
    """Return the groups whose units may be made new.

    Args:
        units: Groups of a network.
        activations: Names of the activations that a method can judge; None: all.

    Raises:
        UserError: If there is none.
    """
    skipped = skipped_groups(units, activations)
    private = [group for group in units if group.name not in skipped]
    if not private:
        reasons = "; ".join(f"'{name}': {reason}" for name, reason in skipped.items()) or "it has no hidden units"
        raise UserError(f"no unit of this model can be made new: {reasons}")
    return UnitGroups(private, outputs=units.outputs)


def skipped_groups(units: UnitGroups, activations: Collection[str] | None = None) -> dict[str, str]:
    """Return the groups whose units are left alone, and why, by name; arguments as for `private_groups`."""
    skipped = {group.name: str(group.reason) for group in units if not group.private}
    for group in units:
        if group.private and activations is not None and group.activation not in activations:
            skipped[group.name] = f"its activation is {group.activation}, not one of: {', '.join(sorted(activations))}"
    return skipped


def initial_values(model: nn.Module) -> dict[str, Tensor]:
    """Copy a network's parameters and buffers, as `surgery.reinitialise` takes them to draw fresh weights from.

    Args:
        model: The network, before it is trained. What has no shape yet is left out.

    Returns:
        Tensors by qualified name, on the model's device.
    """
    own = unwrap(model)
    values = {**dict(own.named_parameters()), **dict(own.named_buffers())}
    return {
        name: value.detach().clone()
        for name, value in values.items()
        if not is_lazy(value) and torch.is_floating_point(value)
    }


def unjudged(values: Tensor, removed: Tensor | None) -> Tensor:
    """Return values of units with NaN for those that are removed: these are not judged, and count for no mean.

    Args:
        values: (size,) floating-point.
        removed: (size,) bool; None, or of another size: none is.
    """
    if removed is None or removed.shape != values.shape:
        return values
    return values.masked_fill(removed.to(values.device), float("nan"))


def most_extreme(
    scores: Mapping[str, Tensor], candidates: Mapping[str, Tensor], maximum_share: float
) -> dict[str, Tensor]:
    """Choose the candidates of each group with the lowest scores.

    Args:
        scores: (size,) by group name; equal ones in the order of their numbers.
        candidates: (size,) bool by group name.
        maximum_share: Largest share of a group to choose, in [0, 1].

    Returns:
        Numbers of the chosen units by group name, ascending.
    """
    chosen = {}
    for name, mask in candidates.items():
        order = torch.where(mask, scores[name], float("inf")).argsort(stable=True)
        room = min(int(mask.sum()), int(maximum_share * len(mask) + 1e-9))
        chosen[name] = order[:room].sort().values
    return chosen


def renew(
    model: nn.Module,
    units: UnitGroups,
    chosen: Mapping[str, Tensor],
    optimizer: Optimizer | None,
    generator: torch.Generator | None,
    initial: Mapping[str, Tensor] | None,
    moments: Moments,
) -> None:
    """Make the chosen units of each group new, in the order of the groups; arguments as of `surgery.reinitialise`."""
    for name, numbers in chosen.items():
        if len(numbers):
            reinitialise(model, units[name], numbers, optimizer, generator, initial=initial, moments=moments)


class RemovedUnits:
    """Units that are removed for good but still in place: moved to the device and counted once for each mask."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Tensor, Tensor, int]] = {}

    def of(self, group: UnitGroup, removed: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor | None, int]:
        """Return which units of a group are removed, (size,) bool on a device, and how many; None, 0: none.

        Args:
            group: The group.
            removed: (size,) bool by group name; another object whenever something has changed.
            device: Of the network.
        """
        mask = removed.get(group.name)
        if mask is None or len(mask) != group.size:
            return None, 0
        known = self._known.get(group.name)
        if known is None or known[0] is not mask or known[1].device != device:
            known = self._known[group.name] = (mask, mask.to(device), int(mask.sum()))
        return known[1], known[2]


def take_counts(counts: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Copy counts to the host, all at once, and set them to 0.

    Args:
        counts: (size,) int64 by group name, on one device.
    """
    if not counts:
        return {}
    parts = [len(count) for count in counts.values()]
    numbers = torch.cat(list(counts.values())).cpu().split(parts)
    for count in counts.values():
        count.zero_()
    return {name: part.tolist() for name, part in zip(counts, numbers, strict=True)}


def check_moments(moments: str) -> None:
    """Refuse an unknown way to clean optimizer state.

    Raises:
        UserError: If it is unknown.
    """
    if moments not in get_args(Moments):
        raise UserError(f"unknown moments {moments!r}; there are: {', '.join(get_args(Moments))}")
