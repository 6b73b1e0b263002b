"""Gradient dormancy: ReDo by gradients, making units new that hardly learn, however active they are.

A unit's score is its mean |dL/dz| over samples and positions of the latest training mini-batches, over the mean of its
layer, z being what its activation is applied to. It is dormant if the score is at most `tau`.

Source: Liu et al. 2025, "Measure gradients, not activations!" (GraMa and ReGraMa), arXiv 2505.24061. Which gradient of
a unit is meant is our reading: the one that reaches its incoming weights, which is 0 for a dead unit; "after" takes the
one behind the activation, which is not. Threshold and period are those of ReDo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import UnitGroups
from plasticity.methods.latest_activity import BatchSums
from plasticity.methods.recycling import check_moments, most_extreme, private_groups, renew, unjudged
from plasticity.methods.treatment import Treatment, because
from plasticity.probe import Probe, output_shift
from plasticity.surgery.optimizer_state import Moments
from plasticity.values import check_shares


@dataclass(frozen=True)
class GradientDormancyRule:
    """Which units are recycled, and how.

    Attributes:
        tau: Largest score of a dormant unit, a share of its layer's mean gradient, in [0, 1].
        gradient: "before" the activation, or "after" it.
        maximum_share: Largest share of a layer that is recycled at a time, in [0, 1], most dormant units first; 0
            leaves the network alone.
        moments: What becomes of the optimizer's second moments, see `plasticity.surgery.optimizer_state.clean_state`.
    """

    tau: float = 0.025
    gradient: Literal["before", "after"] = "before"
    maximum_share: float = 1.0
    moments: Moments = "young"

    def __post_init__(self) -> None:
        check_shares(self, "tau", "maximum_share")
        check_moments(self.moments)
        if self.gradient not in ("before", "after"):
            raise UserError(f"unknown gradient {self.gradient!r}; there are: before, after")


PRESETS: dict[str, GradientDormancyRule] = {
    "default": GradientDormancyRule(),
    "liu2025": GradientDormancyRule(moments="zero"),
}


def gradient_dormant_units(gradients: BatchSums, tau: float) -> Tensor:
    """Mark the units whose mean gradient is at most the share `tau` of their layer's mean.

    Args:
        gradients: Sums of |dL/dz| of one group.
        tau: Largest score of a dormant unit.

    Returns:
        (size,) bool. None of a layer that no gradient reached, and none whose gradient is not finite.
    """
    finite = torch.isfinite(gradients.values)
    mean = torch.where(finite, gradients.values, 0.0).sum() / finite.sum()
    return finite & (gradients.values <= tau * mean) & (mean > 0)


def recycle_gradient_dormant_units(
    model: nn.Module,
    units: UnitGroups,
    gradients: Mapping[str, BatchSums],
    samples: int,
    probe: Probe,
    rule: GradientDormancyRule = PRESETS["default"],
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
    initial: Mapping[str, Tensor] | None = None,
    removed: Mapping[str, Tensor] | None = None,
) -> Treatment:
    """Make the units new that hardly got a gradient.

    Args:
        model: The network.
        units: Its groups; only private ones are touched.
        gradients: Sums of |dL/dz| of training mini-batches, by group name.
        samples: On how many samples they were collected.
        probe: Training inputs on which the shift of the outputs is measured.
        rule: How to recycle.
        optimizer: The network's optimizer.
        generator: Where fresh weights come from.
        initial: The network's first parameters and buffers, see `plasticity.surgery.reinitialise`.
        removed: Units that are gone for good but still in place, (size,) bool by group name; they are not judged.

    Returns:
        The report. Its counts are "dormant" and "recycled" units of private groups.

    Raises:
        UserError: If no group is private.
    """
    private = private_groups(units)
    seen = {
        group.name: replace(
            gradients[group.name], values=unjudged(gradients[group.name].values, (removed or {}).get(group.name))
        )
        for group in private
        if group.name in gradients and len(gradients[group.name].values) == group.size
    }
    dormant = {name: gradient_dormant_units(sums, rule.tau) for name, sums in seen.items()}
    chosen = most_extreme({name: sums.values for name, sums in seen.items()}, dormant, rule.maximum_share)
    recycled = sum(map(len, chosen.values()))
    before = probe.outputs(model) if recycled else None
    renew(model, private, chosen, optimizer, generator, initial, rule.moments)
    return Treatment(
        method="gradient-dormancy",
        samples=samples,
        units={name: numbers.tolist() for name, numbers in chosen.items() if len(numbers)},
        counts={"dormant": sum(int(mask.sum()) for mask in dormant.values()), "recycled": recycled},
        output_shift=0.0 if before is None else output_shift(before, probe.outputs(model)),
        reasons=because({f"dormant: mean gradient at most {rule.tau:g} of its layer's": chosen}),
    )
