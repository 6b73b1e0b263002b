"""ReDo: make dormant units new, again and again.

A unit is dormant if its mean magnitude is at most `tau` of its layer's mean. Its incoming weights are drawn anew from
the layer's initial distribution, its outgoing weights become 0, the readers keep their bias.

Source: Sokar, Agarwal, Castro and Evci 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning",
arXiv 2302.12902, and the authors' code in Dopamine. They zero the moments of Adam and keep its step count, which makes
the first steps of a new unit several times too large; here its second moments begin small instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.groups import UnitGroups
from plasticity.measures import dormant_units
from plasticity.methods.recycling import check_moments, most_extreme, private_groups, renew, unjudged
from plasticity.methods.treatment import Treatment, because, dead_on
from plasticity.probe import Probe, output_shift
from plasticity.surgery.optimizer_state import Moments
from plasticity.values import check_shares


@dataclass(frozen=True)
class ReDoRule:
    """Which units are recycled, and how.

    Attributes:
        tau: Largest score of a dormant unit, a share of its layer's mean magnitude, in [0, 1]; 0 means dead.
        maximum_share: Largest share of a layer that is recycled at a time, in [0, 1], most dormant units first; 0
            leaves the network alone.
        moments: What becomes of the optimizer's second moments, see `plasticity.surgery.optimizer_state.clean_state`.
    """

    tau: float = 0.025
    maximum_share: float = 1.0
    moments: Moments = "young"

    def __post_init__(self) -> None:
        check_shares(self, "tau", "maximum_share")
        check_moments(self.moments)


PRESETS: dict[str, ReDoRule] = {
    "default": ReDoRule(),
    "sokar2023": ReDoRule(moments="zero"),
    "dopamine": ReDoRule(tau=0.0, moments="zero"),
}


def recycle_dormant_units(
    model: nn.Module,
    units: UnitGroups,
    probe: Probe,
    rule: ReDoRule = PRESETS["default"],
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
    initial: Mapping[str, Tensor] | None = None,
    removed: Mapping[str, Tensor] | None = None,
) -> Treatment:
    """Find the dormant units of a network and make them new.

    Args:
        model: The network.
        units: Its groups; only private ones are touched.
        probe: Training inputs, seen in eval mode.
        rule: How to recycle.
        optimizer: The network's optimizer.
        generator: Where fresh weights come from.
        initial: The network's first parameters and buffers, see `plasticity.surgery.reinitialise`.
        removed: Units that are gone for good but still in place, (size,) bool by group name; they are not judged.

    Returns:
        The report. Its counts are "dormant" units and "dead" ones among them, in private groups, and "recycled" units.

    Raises:
        UserError: If no group is private.
    """
    private = private_groups(units)
    activity, before = probe.watch(model, private)
    stats = {
        name: replace(stat, mean_abs=unjudged(stat.mean_abs, (removed or {}).get(name)))
        for name, stat in activity.statistics().items()
        if stat.count
    }
    scores = {name: stat.mean_abs for name, stat in stats.items()}
    dormant = {name: dormant_units(stat, rule.tau) for name, stat in stats.items()}
    chosen = most_extreme(scores, dormant, rule.maximum_share)
    renew(model, private, chosen, optimizer, generator, initial, rule.moments)
    recycled = sum(map(len, chosen.values()))
    return Treatment(
        method="redo",
        samples=probe.samples,
        units={name: numbers.tolist() for name, numbers in chosen.items() if len(numbers)},
        counts={
            "dormant": sum(int(mask.sum()) for mask in dormant.values()),
            "dead": sum(int((mask & (scores[name] == 0)).sum()) for name, mask in dormant.items()),
            "recycled": recycled,
        },
        output_shift=output_shift(before, probe.outputs(model)) if recycled else 0.0,
        reasons=because(
            {
                dead_on(probe.samples): {name: index[scores[name][index] == 0] for name, index in chosen.items()},
                f"dormant: mean magnitude at most {rule.tau:g} of its layer's": {
                    name: index[scores[name][index] != 0] for name, index in chosen.items()
                },
            }
        ),
    )
