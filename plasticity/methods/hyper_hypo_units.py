"""Which units are hyper or hypo: how salient units are, and which lie at both ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from plasticity.errors import UserError
from plasticity.groups import UnitGroups
from plasticity.methods.hyper_hypo_spread import SpreadStatistics, spread_statistics
from plasticity.probe import Probe
from plasticity.values import check_shares, in_range
from plasticity.watching.unit_statistics import UnitStatistics

Mode = Literal["adapt", "prune"]
Saliency = Literal["frequency", "mean_abs", "std", "entropy"]
Select = Literal["percentile", "bounds"]
Units = Literal["both", "hyper", "hypo", "random"]


@dataclass(frozen=True)
class HyperHypoRule:
    """Which units are hyper or hypo, and what is done to them.

    Attributes:
        mode: "adapt" or "prune".
        saliency: "frequency", the share of samples (x positions) on which a unit is above 0, which tells nothing of
            activations that always are; "mean_abs", its mean magnitude over the layer's mean of it; "std", its standard
            deviation; or "entropy", that of its histogram, see `plasticity.methods.hyper_hypo_spread.SpreadStatistics`.
        select: "percentile" takes as many units at each end as `percent` says; "bounds" takes those at or beyond
            `low` and `high`, which may be none.
        percent: Units at each end, in percent of the layer, in [0, 50]: rounded to the nearest whole number, a half
            upwards; above 0, at least one; never so many that the ends meet. Of equals the first is taken.
        low: Saliency up to which a unit is hypo; 0.05 for "frequency" if not given.
        high: Saliency from which on a unit is hyper; 0.95 for "frequency" if not given. For the other saliencies
            "bounds" needs both.
        units: What is treated: "both" ends, one of them, or as many units drawn at "random" as lie at both ends.
        maximum_pruned: Largest share of a layer that "prune" may silence over a whole stream, in [0, 1]; one unit is
            always left. Without a limit, 10% of what is left at each experience would use up a layer.
    """

    mode: Mode = "adapt"
    saliency: Saliency = "frequency"
    select: Select = "percentile"
    percent: float = 5.0
    low: float | None = None
    high: float | None = None
    units: Units = "both"
    maximum_pruned: float = 0.5

    def __post_init__(self) -> None:
        kinds = (("mode", Mode), ("saliency", Saliency), ("select", Select), ("units", Units))
        for name, kind in kinds:
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"unknown {name} {getattr(self, name)!r}; there are: {', '.join(get_args(kind))}")
        in_range("percent", self.percent, 0, 50)  # it counts for each end
        check_shares(self, "maximum_pruned")
        if self.select == "percentile":
            if self.low is not None or self.high is not None:
                raise UserError('low and high have a meaning with select="bounds" only')
            return
        if self.saliency != "frequency" and (self.low is None or self.high is None):
            raise UserError(f'select="bounds" with saliency="{self.saliency}" needs both low and high')
        low, high = (in_range(name, bound) for name, bound in zip(("low", "high"), self.bounds, strict=True))
        if not 0 <= low < high or (self.saliency == "frequency" and high > 1):
            limit = "low < high <= 1" if self.saliency == "frequency" else "low < high"
            raise UserError(f"bounds must satisfy 0 <= {limit}, not low={low} and high={high}")

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds `low` and `high`, with their defaults."""
        return (0.05 if self.low is None else self.low), (0.95 if self.high is None else self.high)


class Selection(NamedTuple):
    """Units of one group, by number, on the host.

    Attributes:
        hyper: (n,) int64, the most salient units, the most salient first.
        hypo: (m,) int64, the least salient units, the least salient first.
        chosen: (k,) int64, the units to treat.
    """

    hyper: Tensor
    hypo: Tensor
    chosen: Tensor


def observe(
    model: nn.Module, units: UnitGroups, probe: Probe, kind: Saliency
) -> tuple[Mapping[str, UnitStatistics], Tensor]:
    """Run a model in eval mode over a probe.

    Args:
        model: The network.
        units: Its groups.
        probe: The inputs.
        kind: The saliency that is wanted.

    Returns:
        The statistics that it takes, by group name, and the outputs, (samples, features).
    """
    if kind in ("std", "entropy"):
        return spread_statistics(model, units, probe)
    activity, outputs = probe.watch(model, units)
    return activity.statistics(), outputs


def saliency(stat: UnitStatistics, kind: Saliency = "frequency", among: Tensor | None = None) -> Tensor:
    """Say how salient each unit of a group is.

    Args:
        stat: Its statistics; `SpreadStatistics` for "std" and "entropy".
        kind: "frequency": fired / count, in [0, 1]. "mean_abs": mean |h| over the layer's mean of that, at least 0, on
            average 1; 0 in a layer that is all 0. A unit with a non-finite mean gets NaN and is left out of the mean.
            "std": standard deviation of h, in the unit of h. "entropy": of the histogram of h within windows, in nats.
        among: (size,) bool, the units of which the layer's mean is taken; None: all.

    Returns:
        (size,).

    Raises:
        UserError: If the statistics do not say how much units vary, and that is asked for.
    """
    if kind == "frequency":
        return stat.fired.to(stat.mean_abs.dtype) / max(stat.count, 1)
    if kind != "mean_abs":
        if not isinstance(stat, SpreadStatistics):
            raise UserError(
                f"saliency {kind!r} needs statistics made by plasticity.methods.hyper_hypo_spread.spread_statistics"
            )
        return stat.std if kind == "std" else stat.entropy
    finite = stat.mean_abs.isfinite()
    counted = finite if among is None else finite & among.to(finite.device)
    mean = torch.where(counted, stat.mean_abs, 0).sum() / counted.sum()
    score = torch.where(mean > 0, stat.mean_abs / mean, 0)
    return torch.where(finite, score, float("nan"))


def select_units(
    stats: Mapping[str, UnitStatistics],
    rule: HyperHypoRule,
    generator: torch.Generator,
    without: Mapping[str, Tensor] | None = None,
) -> dict[str, Selection]:
    """Choose the units to treat, group by group.

    Args:
        stats: Statistics by group name; groups that were not observed are left out.
        rule: How to choose.
        generator: Where "random" draws from, on the host.
        without: (size,) bool by group name, True for units that no longer count.

    Returns:
        The selection of each observed group.
    """
    seen = {name: stat for name, stat in stats.items() if stat.count}
    if not seen:
        return {}
    left = {name: _left(name, len(stat.fired), without or {}) for name, stat in seen.items()}
    scores = torch.cat([saliency(stat, rule.saliency, left[name]) for name, stat in seen.items()]).cpu()
    selections = {}
    for name, score in zip(seen, scores.split([len(stat.fired) for stat in seen.values()]), strict=True):
        candidates = (left[name] & score.isfinite()).nonzero().flatten()
        hyper, hypo = _ends(score[candidates], rule)
        selections[name] = _choose(candidates, candidates[hyper], candidates[hypo], rule.units, generator)
    return selections


def _left(name: str, size: int, without: Mapping[str, Tensor]) -> Tensor:
    known = without.get(name)
    return torch.ones(size, dtype=torch.bool) if known is None or len(known) != size else ~known.cpu()


def _ends(score: Tensor, rule: HyperHypoRule) -> tuple[Tensor, Tensor]:
    """Return the places of the most and of the least salient units."""
    falling = score.argsort(descending=True, stable=True)
    rising = score.argsort(stable=True)
    if rule.select == "bounds":
        low, high = rule.bounds
        return falling[score[falling] >= high], rising[score[rising] <= low]
    number = 0
    if rule.percent > 0:
        number = min(max(1, math.floor(len(score) * rule.percent / 100 + 0.5)), len(score) // 2)
    hyper = falling[:number]
    rest = rising[~torch.isin(rising, hyper)]  # where all are equal, both orders begin alike
    return hyper, rest[:number]


def _choose(candidates: Tensor, hyper: Tensor, hypo: Tensor, units: Units, generator: torch.Generator) -> Selection:
    if units == "hyper":
        return Selection(hyper, hypo, hyper)
    if units == "hypo":
        return Selection(hyper, hypo, hypo)
    if units == "both":
        return Selection(hyper, hypo, torch.cat([hyper, hypo]))
    number = len(hyper) + len(hypo)
    drawn = torch.randperm(len(candidates), generator=generator)[:number] if number else hyper
    return Selection(hyper, hypo, candidates[drawn])
