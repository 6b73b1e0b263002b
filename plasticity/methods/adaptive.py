"""Treat only where it is needed, the mildest treatment first.

Three things tell whether it is: the share of dead units of each layer; the learning record, which is low where a
network learns slowly for whatever reason; and how long the weights have grown. The treatments, in the order of how much
they disturb:

1. Layers with at least `dead` dead units have these made new. The outgoing weights of new units are 0, so the outputs
   of the network stay as they are.
2. If learning has fallen behind (`LearningRecord`), all dormant units are made new, those whose mean magnitude is at
   most `tau` of their layer's.
3. If it has fallen behind again right after that, or the weights are `growth` times as long as at the start, all
   weights go part of the way back to their initial values, and the optimizer begins anew. Nothing milder shortens
   weights.

Units that other paths read may not be made new, and are left to the third. Where not even that helps, the data have
become harder, and the record begins anew.

Source: this library. The parts are ReDo's recycling (Sokar et al. 2023, arXiv 2302.12902) and the interpolation in the
code of FIRE (arXiv 2602.08040); that growing weights go with lost plasticity is in Lyle et al. 2024, arXiv 2402.18762.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.groups import UnitGroups
from plasticity.measures import dead_units, dormant_units
from plasticity.methods.parameters import Entry, total_norm
from plasticity.methods.recycling import check_moments, private_groups, renew
from plasticity.methods.shrink_perturb import ShrinkPerturbRule, shrink_and_perturb
from plasticity.methods.treatment import Treatment, because, dead_on
from plasticity.probe import Probe, output_shift
from plasticity.surgery.optimizer_state import Moments, forget_state
from plasticity.values import check_shares, in_range

STRONGEST = 3
"""Number of the last treatment."""

_ENOUGH = 3  # healthy experiences, before which nothing can be said to have fallen behind them


@dataclass(frozen=True)
class AdaptiveRule:
    """When to treat, and how.

    Attributes:
        dead: Least share of dead units of a layer that is treated, in [0, 1].
        fall: Least fall of accuracy, in [0, 1], at which learning has fallen behind; 1: never.
        growth: Least length of the parameters, in units of that of their initial values, at which they go back, at
            least 1; None: never.
        tau: Largest score of a dormant unit, a share of its layer's mean magnitude, in [0, 1].
        strength: Of the way back to the initial weights, in [0, 1].
        moments: What becomes of the second moments of a new unit, see `plasticity.surgery.optimizer_state.clean_state`.
    """

    dead: float = 0.5
    fall: float = 0.05
    growth: float | None = 2.0
    tau: float = 0.1
    strength: float = 0.8
    moments: Moments = "young"

    def __post_init__(self) -> None:
        check_shares(self, "dead", "tau")
        in_range("fall", self.fall, 0, 1)
        if self.growth is not None:
            in_range("growth", self.growth, 1)
        in_range("strength", self.strength, 0, 1)
        check_moments(self.moments)


class LearningRecord:
    """How well experiences were learned, to tell when one has fallen behind those before it.

    Accuracies are compared among experiences of as many classes. One has fallen behind if it is at least `fall`, and at
    least two standard deviations, below the mean of the healthy ones before it, of which there must be three; if not,
    it is healthy.

    Args:
        fall: Least fall of accuracy, in [0, 1].
    """

    def __init__(self, fall: float) -> None:
        self.fall = fall
        self._healthy: dict[int, list[float]] = {}

    def add(self, classes: int, accuracy: float) -> bool:
        """Take in an experience; returns whether it has fallen behind.

        Args:
            classes: How many it has.
            accuracy: How well it was learned, in [0, 1]; NaN, of a network that has diverged, is no accuracy at all.
        """
        known = self._healthy.setdefault(classes, [])
        mean = sum(known) / len(known) if known else 0.0
        spread = math.sqrt(sum((value - mean) ** 2 for value in known) / max(1, len(known) - 1))
        enough = len(known) >= _ENOUGH and self.fall < 1
        fallen = enough and not mean - accuracy < max(self.fall, 2 * spread, 1e-12)
        if not fallen and not math.isnan(accuracy):
            known.append(accuracy)
        return fallen

    def begin_anew(self) -> None:
        """Forget all experiences."""
        self._healthy = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the healthy accuracies by number of classes."""
        return {str(classes): list(values) for classes, values in self._healthy.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._healthy = {int(classes): [float(value) for value in values] for classes, values in state.items()}


def weight_growth(entries: Sequence[Entry], initial: Mapping[str, Tensor]) -> float:
    """Return the length of all parameters over that of their initial values; 1 where these are all 0."""
    now = float(total_norm([entry.parameter.detach() for entry in entries]))
    first = float(total_norm([initial[entry.name] for entry in entries]))
    return now / first if first > 0 else 1.0


def treat_as_needed(
    model: nn.Module,
    units: UnitGroups,
    probe: Probe,
    rule: AdaptiveRule,
    strongest: int = 1,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
    initial: Mapping[str, Tensor] | None = None,
    entries: Sequence[Entry] = (),
    spared: frozenset[Tensor] = frozenset(),
) -> Treatment:
    """Look at the units of a network, and treat it.

    Args:
        model: The network.
        units: Its groups.
        probe: Training inputs, seen in eval mode.
        rule: When and how.
        strongest: Number of the strongest treatment that the learning record asks for, 1 to 3.
        optimizer: The network's optimizer.
        generator: Where fresh weights come from.
        initial: The network's first parameters and buffers, see `plasticity.surgery.reinitialise`; the third treatment
            needs those of all `entries`.
        entries: The parameters that the third treatment changes; none: only the first two may be given.
        spared: Parameters whose state in the optimizer stays.

    Returns:
        The report. Its counts are "dead" and "dormant" units, in groups that may be treated, the "growth" of the
        parameters, the "treatment" given (0: none was needed), and the "treated" units, which with the third are all.

    Raises:
        UserError: If no group is private.
    """
    private = private_groups(units)
    activity, before = probe.watch(model, private)
    stats = {name: stat for name, stat in activity.statistics().items() if stat.count}
    dead = {name: dead_units(stat) for name, stat in stats.items()}
    dormant = {name: dormant_units(stat, rule.tau) for name, stat in stats.items()}
    counts = torch.stack([torch.stack([dead[name].sum(), dormant[name].sum()]) for name in stats]).tolist()
    numbers = dict(zip(stats, counts, strict=True))
    grown = weight_growth(entries, initial or {}) if entries else 1.0
    if strongest >= STRONGEST or (entries and rule.growth is not None and grown >= rule.growth):
        treatment = STRONGEST
        why = "learning has fallen behind again" if strongest >= STRONGEST else f"weights are {grown:.3g} times as long"
        chosen = {group.name: torch.arange(group.size) for group in units}
        how = ShrinkPerturbRule("interpolate", strength=rule.strength)
        shrink_and_perturb(model, entries, initial or {}, how, generator or torch.Generator())
        if optimizer is not None:
            forget_state(optimizer, spared)
    else:
        marked = dormant if strongest > 1 else dead
        column, least = (1, 0.0) if strongest > 1 else (0, rule.dead)
        chosen = {
            name: mask.nonzero().flatten()
            for name, mask in marked.items()
            if numbers[name][column] > 0 and numbers[name][column] >= least * len(mask)
        }
        treatment = strongest if chosen else 0
        dormancy = f"dormant: mean magnitude at most {rule.tau:g} of its layer's"
        why = dead_on(probe.samples) if strongest == 1 else dormancy
        renew(model, private, chosen, optimizer, generator, initial, rule.moments)
    return Treatment(
        method="adaptive",
        samples=probe.samples,
        units={name: index.tolist() for name, index in chosen.items()},
        counts={
            "dead": sum(pair[0] for pair in counts),
            "dormant": sum(pair[1] for pair in counts),
            "growth": grown,
            "treatment": treatment,
            "treated": sum(map(len, chosen.values())),
        },
        output_shift=output_shift(before, probe.outputs(model)) if treatment else 0.0,
        reasons=because({why: chosen}),
    )
