"""Self-normalized resets: make a unit new once it is silent for longer than is usual for it.

A unit's age is the number of samples since it last fired, counted in whole mini-batches: one in which any sample, at
any position, is above 0 sets it to 0. When a unit fires, the age it had enters its own histogram of silent stretches. A
unit whose age reaches its threshold is made new. Thresholds begin at `maximum_age`; every `refresh` mini-batches each
becomes the percentile of the unit's stretches, or grows if that is larger, as where resets cut many stretches short.

Source: Farias and Jozefiak 2025, "Self-Normalized Resets for Plasticity in Continual Learning", arXiv 2410.20098, and
its code, of which the counting of ages is public. Ours where the sources are silent: stretches that a reset cut short
count as long as they were, since else thresholds could only shrink; a new unit inherits the threshold of the old one;
and the histogram's bins grow by a tenth each, so that a threshold is at most a tenth too large.

All decisions are the device's. The default looks for due units every 50 updates and makes a few of each layer new at a
time: a unit that was due stays so, and is made new some updates later than by the preset "farias2025".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.finiteness import all_finite
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.latest_activity import BatchSums
from plasticity.methods.recycling import RemovedUnits, check_moments, take_counts
from plasticity.surgery import reinitialise
from plasticity.surgery.optimizer_state import Moments
from plasticity.values import check_count, check_shares, in_range, shown

SILENT_ACTIVATIONS = frozenset({"relu", "relu6"})
"""Activations that are never negative, and under which a unit that does not fire is silent: 0, without a gradient."""


@dataclass(frozen=True)
class SelfNormalizedResetsRule:
    """Which units are made new, and when.

    Attributes:
        percentile: Share of a unit's silent stretches that its threshold exceeds, in [0, 1].
        maximum_age: Largest threshold, in samples.
        refresh: Mini-batches after which thresholds are set again.
        expansion: Factor by which a threshold grows that too many stretches reach.
        enough: Stretches that a unit must have had for its threshold to change; until then they go on being counted.
        check_every: Updates after which units that are due are made new.
        maximum_share: Largest share of a layer made new at a time, in [0, 1], rounded up; those left are next. 0 leaves
            the network alone.
        moments: What becomes of the optimizer's second moments, see `plasticity.surgery.optimizer_state.clean_state`.
    """

    percentile: float = 0.98
    maximum_age: int = 20_000
    refresh: int = 1000
    expansion: float = 2.0
    enough: int = 50
    check_every: int = 50
    maximum_share: float = 0.02
    moments: Moments = "young"

    def __post_init__(self) -> None:
        check_shares(self, "percentile", "maximum_share")
        check_moments(self.moments)
        for name in ("maximum_age", "refresh", "enough", "check_every"):
            check_count(name, getattr(self, name), 1)
        if self.maximum_age > LONGEST:
            raise UserError(f"maximum_age must be at most {LONGEST}, not {shown(self.maximum_age)}")
        in_range("expansion", self.expansion, 1)


LONGEST = 2**31 - 1
"""Samples that ages are counted up to."""
PRESETS: dict[str, SelfNormalizedResetsRule] = {
    "default": SelfNormalizedResetsRule(),
    "farias2025": SelfNormalizedResetsRule(enough=1, check_every=1, maximum_share=1.0, moments="zero"),
}


@dataclass
class _Units:
    """The units of one group."""

    age: Tensor  # samples since a unit fired
    threshold: Tensor
    stretches: Tensor  # (size, bins) how many silent stretches of each length
    due: Tensor
    recycled: Tensor  # how often since the last report
    updates: int = 0


_TENSORS = ("age", "threshold", "stretches", "due", "recycled")


class SelfNormalizedResets:
    """Keeps the ages and thresholds of units, and makes new those that are silent for too long.

    Args:
        rule: When a unit is made new.
    """

    def __init__(self, rule: SelfNormalizedResetsRule = PRESETS["default"]) -> None:
        self.rule = rule
        self._units: dict[str, _Units] = {}
        self._bounds = torch.tensor(_bounds(rule.maximum_age))
        self._largest_batch = 1
        self._removed = RemovedUnits()
        self._joint: dict[torch.device, tuple[list[_Units], _Units]] = {}

    def step(
        self,
        model: nn.Module,
        units: UnitGroups,
        magnitudes: Mapping[str, BatchSums],
        samples: int,
        optimizer: Optimizer | None = None,
        generator: torch.Generator | None = None,
        initial: Mapping[str, Tensor] | None = None,
        removed: Mapping[str, Tensor] | None = None,
    ) -> bool:
        """Judge units after an update, and make new those that are due.

        Args:
            model: The network, just updated.
            units: Its private groups.
            magnitudes: Sums of h in the mini-batch of the update, by group name, above 0 for units that fired; groups
                it did not reach are left alone.
            samples: Size of the mini-batch.
            optimizer: The network's optimizer.
            generator: Where fresh weights come from.
            initial: The network's first parameters and buffers, see `plasticity.surgery.reinitialise`.
            removed: Units that are gone for good but still in place, (size,) bool by group name, which are never due;
                another object whenever something has changed.

        Returns:
            Whether units may have been made new; only the device knows.
        """
        self._largest_batch = max(self._largest_batch, samples)
        seen = [group for group in units if group.name in magnitudes and magnitudes[group.name].count]
        checked = False
        sound: Tensor | None = None
        with torch.no_grad():
            states = [self._state(group, magnitudes[group.name].values) for group in seen]
            self._count(states, [magnitudes[group.name].values for group in seen], samples)
            for group, state in zip(seen, states, strict=True):
                state.updates += 1
                gone, _ = self._removed.of(group, removed, state.age.device) if removed else (None, 0)
                if gone is not None:
                    state.due &= ~gone
                if state.updates % self.rule.check_every == 0 and self.rule.maximum_share > 0:
                    if sound is None:
                        sound = all_finite([magnitudes[each.name].values for each in seen])
                    self._renew(model, group, state, optimizer, generator, initial, sound.to(state.due.device))
                    checked = True
                if state.updates % self.rule.refresh == 0:
                    self._refresh(state)
        return checked

    def _count(self, states: Sequence[_Units], sums: Sequence[Tensor], samples: int) -> None:
        """Let units fire or grow older, those of all groups on a device at once; units that are due wait as they are.

        Args:
            states: Of the groups.
            sums: (size,) for each group, above 0 for units that fired.
            samples: Size of the mini-batch.
        """
        for device in dict.fromkeys(each.device for each in sums):
            here = [number for number, each in enumerate(sums) if each.device == device]
            units = self._joined([states[number] for number in here], device)
            fired = torch.cat([sums[number] for number in here]) != 0  # NaN is not silent
            wakes = fired & ~units.due
            place = torch.bucketize(units.age, self._bounds_on(device), right=True)[:, None]
            units.stretches.scatter_add_(1, place, wakes[:, None].to(torch.int32))
            units.age.add_(samples).masked_fill_(wakes, 0)
            units.due |= units.age >= units.threshold

    def _joined(self, states: list[_Units], device: torch.device) -> _Units:
        """Return the units of several groups as if they were one: from now on each group has a part of its tensors."""
        known = self._joint.get(device)
        if known is None or len(known[0]) != len(states) or any(map(is_not, known[0], states)):
            whole = {key: torch.cat([getattr(state, key) for state in states]) for key in _TENSORS}
            for key, tensor in whole.items():
                for state, part in zip(states, tensor.split([len(state.age) for state in states]), strict=True):
                    setattr(state, key, part)
            known = self._joint[device] = (states, _Units(**whole, updates=0))
        return known[1]

    def _bounds_on(self, device: torch.device) -> Tensor:
        if self._bounds.device != device:
            self._bounds = self._bounds.to(device)
        return self._bounds

    def _renew(
        self,
        model: nn.Module,
        group: UnitGroup,
        state: _Units,
        optimizer: Optimizer | None,
        generator: torch.Generator | None,
        initial: Mapping[str, Tensor] | None,
        sound: Tensor,
    ) -> None:
        """Make the first due units new, as many as may be at a time; none where the network is not finite."""
        room = math.ceil(self.rule.maximum_share * group.size - 1e-9)
        index = state.due.to(torch.int8).argsort(descending=True, stable=True)[:room]
        marked = state.due[index] & sound
        reinitialise(
            model, group, index, optimizer, generator, initial=initial, moments=self.rule.moments, marked=marked
        )
        age = state.age[index]
        place = torch.bucketize(age, self._bounds_on(age.device), right=True)
        state.stretches[index, place] += marked.to(torch.int32)
        state.age[index] = torch.where(marked, 0, age)
        state.recycled[index] += marked.to(torch.int64)
        state.due[index] &= ~marked

    def _refresh(self, state: _Units) -> None:
        """Set the thresholds by the stretches since they were set last."""
        total = state.stretches.sum(1)
        within = state.stretches.cumsum(1) >= (self.rule.percentile * total - 1e-3)[:, None]
        beyond = nn.functional.pad(self._bounds_on(total.device), (0, 1), value=self.rule.maximum_age)
        found = beyond[within.to(torch.int8).argmax(1)]
        grown = (state.threshold * self.rule.expansion).to(torch.int64)
        set_anew = torch.where(found <= state.threshold, found, grown)
        lowest = min(self._largest_batch, self.rule.maximum_age)
        ready = total >= self.rule.enough
        state.threshold.copy_(torch.where(ready, set_anew.clamp(lowest, self.rule.maximum_age), state.threshold))
        state.stretches.masked_fill_(ready[:, None], 0)

    def _state(self, group: UnitGroup, like: Tensor) -> _Units:
        state = self._units.get(group.name)
        if state is None or len(state.age) != group.size:
            age = torch.zeros(group.size, dtype=torch.int64, device=like.device)
            stretches = torch.zeros(group.size, len(self._bounds) + 1, dtype=torch.int32, device=like.device)
            threshold = torch.full_like(age, self.rule.maximum_age)
            state = _Units(age, threshold, stretches, torch.zeros_like(age, dtype=torch.bool), torch.zeros_like(age))
            self._units[group.name] = state
        elif state.age.device != like.device:
            for name in _TENSORS:
                setattr(state, name, getattr(state, name).to(like.device))
            self._joint = {}
        return state

    def begin_anew(self, units: Mapping[str, Sequence[int]]) -> None:
        """Let some units, by group name, begin as new ones, which somebody else has made of them."""
        for name, numbers in units.items():
            state = self._units.get(name)
            if state is not None and len(numbers):
                index = torch.tensor(numbers, device=state.age.device)
                state.age[index] = 0
                state.due[index] = False

    def replacements(self) -> dict[str, list[int]]:
        """Return how often each unit was made new since the last call, by group name; copies to the host once."""
        return take_counts({name: state.recycled for name, state in self._units.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of what is known of the units."""
        units = {
            name: {**{key: getattr(state, key).clone() for key in _TENSORS}, "updates": state.updates}
            for name, state in self._units.items()
        }
        return {"largest_batch": self._largest_batch, "units": units}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._largest_batch = int(state["largest_batch"])
        self._units = {
            name: _Units(**{key: known[key].clone() for key in _TENSORS}, updates=int(known["updates"]))
            for name, known in state["units"].items()
        }
        self._joint = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_joint": {}}


def _bounds(maximum_age: int) -> list[int]:
    """Return the ages at which the bins of the histogram begin, but for the first: 1, 2, 3, ..., each a tenth more."""
    bounds = [1]
    while bounds[-1] < maximum_age:
        bounds.append(min(max(bounds[-1] + 1, math.floor(bounds[-1] * 1.1)), maximum_age))
    return bounds
