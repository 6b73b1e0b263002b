"""Continual backprop: after every update, make the least useful mature units of each layer new, a few at a time.

After every update, for each layer:

    u_i <- decay u_i + (1 - decay) E|h_i| sum_k |w_ki|        its contribution, E over samples and positions
    age_i <- age_i + 1
    owed <- owed + rate * (number of units older than `maturity`)
    the floor(owed) of them with the smallest u_i / (1 - decay^age_i) are made new: age, u <- 0

How many units are mature does not depend on which were replaced, so the host knows how many to replace without asking
the device; which ones, only the device knows. Nothing waits for it, and most updates replace none.

Source: Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632, and its code. The rule is that
of the text. Not copied from the code: a transfer to the readers' bias that does nothing because the mean was zeroed
before; a convolution's rate that counts units that are not mature; a first moment of Adam that stays; and sums that
never decay. Its optimizers restart Adam's bias correction for each reset entry; here second moments begin small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.finiteness import all_finite
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.latest_activity import BatchSums
from plasticity.methods.outgoing import OutgoingMagnitude, transfer_to_bias
from plasticity.methods.recycling import RemovedUnits, check_moments, take_counts
from plasticity.surgery import reinitialise
from plasticity.surgery.optimizer_state import Moments
from plasticity.values import check_count, check_flag, check_shares


@dataclass(frozen=True)
class ContinualBackpropRule:
    """Which units are replaced, and how.

    Attributes:
        replacement_rate: Share of the mature units of a layer that is replaced at every update, in [0, 1]; fractions
            add up. 0 leaves the network alone.
        maturity: Updates during which a new unit is safe.
        decay: Of the running mean of contributions, in [0, 1).
        outgoing: Whether the magnitudes of a unit's outgoing weights are added up ("sum") or averaged ("mean").
        transfer: Add a replaced unit's mean activation (before any pooling), times its outgoing weights, to the bias of
            its readers, where they have one and read all units through equally many columns.
        weights_every: The magnitudes of outgoing weights are looked up again after so many updates, which is cheaper
            than after each; they move little against the running mean. Those of a new unit are 0 until then.
        moments: What becomes of the optimizer's second moments, see `plasticity.surgery.optimizer_state.clean_state`.
    """

    replacement_rate: float = 1e-4
    maturity: int = 100
    decay: float = 0.99
    outgoing: Literal["sum", "mean"] = "sum"
    transfer: bool = False
    weights_every: int = 10
    moments: Moments = "young"

    def __post_init__(self) -> None:
        check_shares(self, "replacement_rate", "decay")
        check_moments(self.moments)
        if self.decay == 1:
            raise UserError("decay must be below 1")
        check_count("maturity", self.maturity, 0)
        check_count("weights_every", self.weights_every, 1)
        check_flag("transfer", self.transfer)
        if self.outgoing not in ("sum", "mean"):
            raise UserError(f"unknown outgoing {self.outgoing!r}; there are: sum, mean")


PRESETS: dict[str, ContinualBackpropRule] = {
    "default": ContinualBackpropRule(),
    "dohare2024": ContinualBackpropRule(weights_every=1, moments="zero"),
    "dohare2024-code": ContinualBackpropRule(outgoing="mean", weights_every=1, moments="zero"),
    "dohare2024-resnet": ContinualBackpropRule(replacement_rate=1e-5, maturity=1000, weights_every=1, moments="zero"),
}


@dataclass
class _Units:
    """The units of one group: what the device knows of each, and what the host knows of all."""

    utility: Tensor
    age: Tensor
    mean: Tensor
    outgoing: Tensor  # magnitude of outgoing weights, as of the latest look
    replaced: Tensor  # how often since the last report
    updates: int = 0
    owed: float = 0.0
    young: list[tuple[int, int]] = field(default_factory=list)  # update of a replacement, how many units


_TENSORS = ("utility", "age", "mean", "outgoing", "replaced")


class ContinualBackprop:
    """Keeps the utilities of units, and replaces the least useful ones.

    Args:
        rule: How to replace.
    """

    def __init__(self, rule: ContinualBackpropRule = PRESETS["default"]) -> None:
        self.rule = rule
        self._units: dict[str, _Units] = {}
        self._magnitudes = OutgoingMagnitude(average=rule.outgoing == "mean")
        self._removed = RemovedUnits()

    def step(
        self,
        model: nn.Module,
        units: UnitGroups,
        magnitudes: Mapping[str, BatchSums],
        optimizer: Optimizer | None = None,
        generator: torch.Generator | None = None,
        initial: Mapping[str, Tensor] | None = None,
        means: Mapping[str, BatchSums] | None = None,
        removed: Mapping[str, Tensor] | None = None,
    ) -> int:
        """Judge units after an update, and replace those that are due.

        Args:
            model: The network, just updated.
            units: Its private groups.
            magnitudes: Sums of |h| in the mini-batch of the update, by group name; groups it did not reach are left
                alone.
            optimizer: The network's optimizer.
            generator: Where fresh weights come from.
            initial: The network's first parameters and buffers, see `plasticity.surgery.reinitialise`.
            means: Sums of h, by group name; needed for `transfer`.
            removed: Units that are gone for good but still in place, (size,) bool by group name, which are never
                replaced and do not count as mature; another object whenever something has changed.

        Returns:
            How many units were replaced, or would have been in a network that is finite.
        """
        seen = [group for group in units if group.name in magnitudes and magnitudes[group.name].count]
        if not seen:
            return 0
        replaced = 0
        sound: Tensor | None = None
        with torch.no_grad():
            states = [self._state(group, magnitudes[group.name].values) for group in seen]
            self._judge(model, seen, states, magnitudes)
            if self.rule.transfer:
                torch._foreach_lerp_([state.mean for state in states], _means(seen, means or {}), 1 - self.rule.decay)
            for group, state in zip(seen, states, strict=True):
                gone, number = self._removed.of(group, removed, state.age.device) if removed else (None, 0)
                count = self._due(state, group.size - number)
                if count:
                    if sound is None:
                        sound = all_finite([magnitudes[each.name].values for each in seen])
                    here = sound.to(state.age.device)
                    self._replace(model, group, state, count, optimizer, generator, initial, gone, here)
                    replaced += count
        return replaced

    def _judge(
        self,
        model: nn.Module,
        groups: Sequence[UnitGroup],
        states: Sequence[_Units],
        magnitudes: Mapping[str, BatchSums],
    ) -> None:
        """Advance utilities and ages: a few operations for all groups together."""
        for group, state in zip(groups, states, strict=True):
            if state.updates % self.rule.weights_every == 0:
                state.outgoing = self._magnitudes.of(model, group)
            state.updates += 1
        contributions = _means(groups, magnitudes)
        torch._foreach_mul_(contributions, [state.outgoing for state in states])
        torch._foreach_lerp_([state.utility for state in states], contributions, 1 - self.rule.decay)
        torch._foreach_add_([state.age for state in states], 1)

    def _due(self, state: _Units, size: int) -> int:
        """Say how many units to replace now."""
        maturity = self.rule.maturity
        while state.young and state.updates - state.young[0][0] > maturity:
            state.young.pop(0)
        mature = max(0, size - sum(count for _, count in state.young)) if state.updates > maturity else 0
        state.owed += self.rule.replacement_rate * mature
        count = min(math.floor(state.owed), mature)
        state.owed -= count
        if count:
            state.young.append((state.updates, count))
        return count

    def _replace(
        self,
        model: nn.Module,
        group: UnitGroup,
        state: _Units,
        count: int,
        optimizer: Optimizer | None,
        generator: torch.Generator | None,
        initial: Mapping[str, Tensor] | None,
        gone: Tensor | None,
        sound: Tensor,
    ) -> None:
        """Replace units; none where the network is not finite, and none whose utility is not, which begin anew."""
        broken = ~state.utility.isfinite()
        for tensor in state.utility, state.age, state.mean:
            tensor.masked_fill_(broken, 0)
        correction = 1 - torch.pow(self.rule.decay, state.age)
        utility = (state.utility / correction).nan_to_num(torch.finfo(torch.float32).max)
        mature = state.age > self.rule.maturity
        ready = mature if gone is None else mature & ~gone
        candidates = torch.where(ready, utility, float("inf"))
        index = candidates.argsort(stable=True)[:count].sort().values
        marked = ready[index] & sound
        if self.rule.transfer:
            transfer_to_bias(model, group, index, torch.where(marked, (state.mean / correction)[index], 0))
        reinitialise(
            model, group, index, optimizer, generator, initial=initial, moments=self.rule.moments, marked=marked
        )
        for tensor in state.utility, state.age, state.mean, state.outgoing:
            tensor[index] = torch.where(marked, 0, tensor[index])
        state.replaced[index] += marked.to(torch.int64)

    def _state(self, group: UnitGroup, like: Tensor) -> _Units:
        state = self._units.get(group.name)
        if state is None or len(state.utility) != group.size:
            zeros = torch.zeros(group.size, device=like.device)
            times = torch.zeros_like(zeros, dtype=torch.int64)
            state = _Units(zeros, zeros.clone(), zeros.clone(), zeros.clone(), times)
            self._units[group.name] = state
        elif state.utility.device != like.device:
            for name in _TENSORS:
                setattr(state, name, getattr(state, name).to(like.device))
        return state

    def begin_anew(self, units: Mapping[str, Sequence[int]]) -> None:
        """Forget what is known of some units, by group name, which somebody else has made new."""
        for name, numbers in units.items():
            state = self._units.get(name)
            if state is not None and len(numbers):
                index = torch.tensor(numbers, device=state.age.device)
                for tensor in state.utility, state.age, state.mean, state.outgoing:
                    tensor[index] = 0
                state.young.append((state.updates, len(numbers)))

    def replacements(self) -> dict[str, list[int]]:
        """Return how often each unit was replaced since the last call, by group name; copies to the host once."""
        return take_counts({name: state.replaced for name, state in self._units.items()})

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return a copy of what is known of the units."""
        return {
            name: {key: value.clone() if isinstance(value, Tensor) else value for key, value in vars(state).items()}
            | {"young": [list(entry) for entry in state.young]}
            for name, state in self._units.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what `state_dict` returned."""
        self._units = {}
        for name, known in state.items():
            tensors = {key: known[key].clone() for key in _TENSORS}
            young = [(int(update), int(count)) for update, count in known["young"]]
            self._units[name] = _Units(**tensors, updates=int(known["updates"]), owed=float(known["owed"]), young=young)


def _means(groups: Sequence[UnitGroup], sums: Mapping[str, BatchSums]) -> list[Tensor]:
    """Return the mean over samples and positions of each unit, (size,) for each group."""
    found = [sums[group.name] for group in groups]
    return list(torch._foreach_div([each.values for each in found], [each.count for each in found]))
