"""Hyper- and hypo-units: adapt the units at both ends of saliency before all others, or silence them for good.

Source of the idea: Mitra and Franco 2020, "Investigation and Analysis of Hyper and Hypo neuron pruning to selectively
update neurons during Unsupervised Adaptation", arXiv 2001.01755. Units that are active most of the time (hyper) or
hardly ever (hypo) are removed, or they alone are adapted to new data first and then the whole network, in the fully
connected layers of an acoustic model, without labels.

The paper gives no formula, and there is no official code. Ours, not the paper's, are: both saliencies and their
numbers, the share of 5% at each end, judging layer by layer on training inputs of the experience before, what of a
unit learns (incoming weights and bias), for how long, learning with labels, convolutions (a unit is a channel), and
pruning outgoing weights rather than activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.activity import UnitStatistics
from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, layer
from plasticity.masks import Masks
from plasticity.methods.treatment import Treatment
from plasticity.probe import Probe, output_shift
from plasticity.surgery import outgoing

Mode = Literal["adapt", "prune"]
Saliency = Literal["frequency", "mean_abs"]
Select = Literal["percentile", "bounds"]
Units = Literal["both", "hyper", "hypo", "random"]


@dataclass(frozen=True)
class HyperHypoRule:
    """Which units are hyper or hypo, and what is done to them.

    Attributes:
        mode: "adapt" or "prune".
        saliency: "frequency", the share of samples (x positions) on which a unit is above 0, which tells nothing of
            activations that always are; or "mean_abs", its mean magnitude over the layer's mean of it.
        select: "percentile" takes as many units at each end as `percent` says; "bounds" takes those at or beyond
            `low` and `high`, which may be none.
        percent: Units at each end, in percent of the layer, in [0, 50]: rounded to the nearest whole number, a half
            upwards; above 0, at least one; never so many that the ends meet. Of equals the first is taken.
        low: Saliency up to which a unit is hypo; 0.05 for "frequency" if not given.
        high: Saliency from which on a unit is hyper; 0.95 for "frequency" if not given. For "mean_abs", whose scale
            has no upper end, "bounds" needs both.
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
        if not 0 <= self.percent <= 50:
            raise UserError(f"percent must lie in [0, 50], as it counts for each end, not {self.percent}")
        if not 0 <= self.maximum_pruned <= 1:
            raise UserError(f"maximum_pruned must lie in [0, 1], not {self.maximum_pruned}")
        if self.select == "percentile":
            if self.low is not None or self.high is not None:
                raise UserError('low and high have a meaning with select="bounds" only')
            return
        if self.saliency == "mean_abs" and (self.low is None or self.high is None):
            raise UserError('select="bounds" with saliency="mean_abs" needs both low and high')
        low, high = self.bounds
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


def saliency(stat: UnitStatistics, kind: Saliency = "frequency", among: Tensor | None = None) -> Tensor:
    """Say how salient each unit of a group is.

    Args:
        stat: Its statistics.
        kind: "frequency": fired / count, in [0, 1]. "mean_abs": mean |h| over the layer's mean of that, at least 0, on
            average 1; 0 in a layer that is all 0. A unit with a non-finite mean gets NaN and is left out of the mean.
        among: (size,) bool, the units of which the layer's mean is taken; None: all.

    Returns:
        (size,) without unit.
    """
    if kind == "frequency":
        return stat.fired.to(stat.mean_abs.dtype) / max(stat.count, 1)
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
    return ~without[name] if name in without else torch.ones(size, dtype=torch.bool)


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


# --- adapt -----------------------------------------------------------------------------------------------------


def choose_entries(
    model: nn.Module, units: UnitGroups, probe: Probe, rule: HyperHypoRule, generator: torch.Generator
) -> tuple[Treatment, dict[str, Selection], dict[str, Tensor]]:
    """Choose the units that adapt first, for `plasticity.freezing.PartialTraining`. Nothing is changed.

    Only incoming weights are to change, so groups need not be private.

    Args:
        model: The network.
        units: Its groups.
        probe: Training inputs on which units are judged, in eval mode.
        rule: How to choose.
        generator: Where "random" draws from.

    Returns:
        The report, whose counts are "hyper" and "hypo" (how many units lie at each end), "selected" (how many adapt
        first) and "trainable_fraction" (the share of the network's parameters that this is); the selections; and the
        entries that learn, as `incoming_entries` returns them.
    """
    activity, _ = probe.watch(model, units)
    selections = select_units(activity.statistics(), rule, generator)
    entries = incoming_entries(model, units, selections)
    total = sum(parameter.numel() for parameter in model.parameters())
    learning = sum(int(mask.sum()) for mask in entries.values())
    counts = {**_counts(selections), "trainable_fraction": learning / total}
    treated = {name: sorted(each.chosen.tolist()) for name, each in selections.items() if len(each.chosen)}
    return Treatment("hyper-hypo", probe.samples, treated, counts), selections, entries


def incoming_entries(model: nn.Module, units: UnitGroups, selections: Mapping[str, Selection]) -> dict[str, Tensor]:
    """Return which parameter entries write the chosen units: rows of weights and biases of their producers.

    Args:
        model: The network.
        units: Its groups.
        selections: The chosen units by group name.

    Returns:
        By qualified name of a parameter, a boolean tensor of its shape on the host; no name without a chosen entry.

    Raises:
        UserError: If a layer computes its weight from other parameters, which have no rows of units.
    """
    rows_of: dict[str, Tensor] = {}
    for name, selection in selections.items():
        for write in units[name].writes if len(selection.chosen) else ():
            rows = write.rows.cpu()[selection.chosen]
            if bool((rows >= 0).any()):
                known = rows_of.setdefault(write.layer, torch.zeros(_rows(model, write.layer), dtype=torch.bool))
                known[rows[rows >= 0]] = True
    entries = {}
    for name, rows in rows_of.items():
        for key, parameter in layer(model, name).named_parameters(recurse=False):
            shape = (-1, *[1] * (parameter.dim() - 1))
            entries[f"{name}.{key}" if name else key] = rows.view(shape).expand(parameter.shape).clone()
    return entries


def _rows(model: nn.Module, name: str) -> int:
    weight = dict(layer(model, name).named_parameters(recurse=False)).get("weight")
    if weight is None:
        raise UserError(f"layer '{name}' computes its weight from other parameters, so single units cannot be adapted")
    return len(weight)


def _counts(selections: Mapping[str, Selection]) -> dict[str, float]:
    return {
        "hyper": sum(len(each.hyper) for each in selections.values()),
        "hypo": sum(len(each.hypo) for each in selections.values()),
        "selected": sum(len(each.chosen) for each in selections.values()),
    }


# --- prune -----------------------------------------------------------------------------------------------------


def prune_units(
    model: nn.Module,
    units: UnitGroups,
    probe: Probe,
    masks: Masks,
    pruned: dict[str, Tensor],
    rule: HyperHypoRule,
    optimizer: Optimizer | None,
    generator: torch.Generator,
) -> tuple[Treatment, dict[str, Selection]]:
    """Silence the chosen units of private groups for good.

    Args:
        model: The network.
        units: Its groups.
        probe: Training inputs on which units are judged, in eval mode.
        masks: Takes up the removed outgoing connections, and holds those removed before.
        pruned: (size,) bool on the host by group name, True for units silenced before, which are neither judged nor
            chosen; takes up the new ones.
        rule: How to choose, and how many units may go.
        optimizer: Its state is zeroed at removed connections.
        generator: Where "random" draws from.

    Returns:
        The report, and the selections. Its counts are "hyper", "hypo" and "selected"; of the selected those newly
        "pruned", "skipped" because their group is not private, and "spared" because enough of their group is gone;
        and "pruned_in_all".
    """
    keep_pruned(model, units, masks, pruned, optimizer)
    activity, before = probe.watch(model, units)
    selections = select_units(activity.statistics(), rule, generator, pruned)
    gone: dict[str, list[int]] = {}
    skipped = spared = 0
    for name, selection in selections.items():
        group = units[name]
        if not group.private:
            skipped += len(selection.chosen)
            continue
        before_now = pruned.get(name, torch.zeros(group.size, dtype=torch.bool))
        limit = min(math.floor(rule.maximum_pruned * group.size + 1e-9), group.size - 1)
        taken = _order(selection, rule.units)[: max(limit - int(before_now.sum()), 0)]
        spared += len(selection.chosen) - len(taken)
        if len(taken):
            pruned[name] = before_now.index_fill(0, taken, True)
            _silence(model, group, taken, masks, optimizer)
            gone[name] = sorted(taken.tolist())
    counts = {
        **_counts(selections),
        "pruned": sum(len(numbers) for numbers in gone.values()),
        "skipped": skipped,
        "spared": spared,
        "pruned_in_all": sum(int(mask.sum()) for mask in pruned.values()),
    }
    shift = output_shift(before, probe.outputs(model)) if gone else 0.0
    return Treatment("hyper-hypo", probe.samples, gone, counts, shift), selections


def keep_pruned(
    model: nn.Module, units: UnitGroups, masks: Masks, pruned: dict[str, Tensor], optimizer: Optimizer | None = None
) -> None:
    """Silence pruned units towards the readers that they have now: a head may have grown, or been added.

    Args:
        model: The network.
        units: Its present groups; units of groups that are gone are forgotten.
        masks: Takes up the removed connections.
        pruned: (size,) bool by group name, as in `prune_units`; extended where a group has grown.
        optimizer: Its state is zeroed at removed connections.

    Raises:
        UserError: If a group has become smaller.
    """
    groups = {group.name: group for group in units}
    for name, mask in list(pruned.items()):
        if name not in groups:
            del pruned[name]
            continue
        group = groups[name]
        if group.size < len(mask):
            raise UserError(f"group '{name}' had {len(mask)} units when some were pruned, and has {group.size} now")
        pruned[name] = torch.cat([mask, mask.new_zeros(group.size - len(mask))])
        if group.private:
            _silence(model, group, pruned[name].nonzero().flatten(), masks, optimizer)


def _silence(model: nn.Module, group: UnitGroup, index: Tensor, masks: Masks, optimizer: Optimizer | None) -> None:
    for reader in group.readers:
        masks.remove(model, reader.layer, outgoing(model, reader, index), optimizer)


def _order(selection: Selection, units: Units) -> Tensor:
    """Return the chosen units, from both ends in turn where both are chosen."""
    if units != "both":
        return selection.chosen
    places = torch.cat([2 * torch.arange(len(selection.hyper)), 2 * torch.arange(len(selection.hypo)) + 1])
    return selection.chosen[places.argsort()]
