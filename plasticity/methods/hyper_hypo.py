"""Hyper- and hypo-units: adapt the units at both ends of saliency before all others, or silence them for good.

Source of the idea: Mitra and Franco 2020, "Investigation and Analysis of Hyper and Hypo neuron pruning to selectively
update neurons during Unsupervised Adaptation", arXiv 2001.01755. Units that are active most of the time (hyper) or
hardly ever (hypo) are removed, or they alone are adapted to new data first and then the whole network, in the fully
connected layers of an acoustic model, without labels.

The paper gives no formula, and there is no official code. Ours, not the paper's, are: the saliencies and their numbers
("entropy" follows the authors' earlier arXiv 1708.09516), the share of 5% at each end, judging layer by layer on
training inputs of the experience before, what of a unit learns (incoming weights and bias), for how long, learning with
labels, convolutions (a unit is a channel), and pruning outgoing weights rather than activations. Learning without
labels is in `plasticity.methods.self_labels`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, layer
from plasticity.methods.hyper_hypo_units import HyperHypoRule, Selection, Units, observe, select_units
from plasticity.methods.treatment import Treatment
from plasticity.probe import Probe, output_shift
from plasticity.surgery import outgoing
from plasticity.surgery.masks import Masks

# --- adapt -----------------------------------------------------------------------------------------------------


def choose_entries(
    model: nn.Module,
    units: UnitGroups,
    probe: Probe,
    rule: HyperHypoRule,
    generator: torch.Generator,
    removed: Mapping[str, Tensor] | None = None,
) -> tuple[Treatment, dict[str, Selection], dict[str, Tensor]]:
    """Choose the units that adapt first, for `plasticity.surgery.freezing.PartialTraining`. Nothing is changed.

    Only incoming weights are to change, so groups need not be private.

    Args:
        model: The network.
        units: Its groups.
        probe: Training inputs on which units are judged, in eval mode.
        rule: How to choose.
        generator: Where "random" draws from.
        removed: Units that are gone for good but still in place, (size,) bool by group name; they are neither judged
            nor chosen.

    Returns:
        The report, whose counts are "hyper" and "hypo" (how many units lie at each end), "selected" (how many adapt
        first) and "trainable_fraction" (the share of the network's parameters that this is); the selections; and the
        entries that learn, as `incoming_entries` returns them.
    """
    stats, _ = observe(model, units, probe, rule.saliency)
    selections = select_units(stats, rule, generator, removed)
    entries = incoming_entries(model, units, selections)
    total = sum(parameter.numel() for parameter in model.parameters())
    learning = sum(int(mask.sum()) for mask in entries.values())
    counts = {**_counts(selections), "trainable_fraction": learning / total}
    treated = {name: sorted(each.chosen.tolist()) for name, each in selections.items() if len(each.chosen)}
    report = Treatment("hyper-hypo", probe.samples, treated, counts, reasons=_reasons(rule, selections, treated))
    return report, selections, entries


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


def _reasons(
    rule: HyperHypoRule, selections: Mapping[str, Selection], treated: Mapping[str, list[int]]
) -> dict[str, dict[str, list[int]]]:
    """Return why units are treated, as `Treatment` holds it."""
    if rule.units == "random":
        return {"drawn at random, as many as lie at both ends": dict(treated)} if treated else {}
    low, high = (f"among the {end} {rule.percent:g}% of its layer" for end in ("lowest", "highest"))
    if rule.select == "bounds":
        low, high = f"at most {rule.bounds[0]:g}", f"at least {rule.bounds[1]:g}"
    found: dict[str, dict[str, list[int]]] = {}
    for end, limit in (("hyper", high), ("hypo", low)):
        units = {name: set(getattr(selections[name], end).tolist()) for name in treated}
        groups = {name: [number for number in numbers if number in units[name]] for name, numbers in treated.items()}
        if any(groups.values()):
            found[f"{end}: {rule.saliency} {limit}"] = {name: numbers for name, numbers in groups.items() if numbers}
    return found


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
    removed: Mapping[str, Tensor] | None = None,
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
        removed: Units that are gone for good but still in place, (size,) bool by group name; they are neither judged
            nor chosen, and count for no limit.

    Returns:
        The report, and the selections. Its counts are "hyper", "hypo" and "selected"; of the selected those newly
        "pruned", "skipped" because their group is not private, and "spared" because enough of their group is gone;
        and "pruned_in_all".
    """
    keep_pruned(model, units, masks, pruned, optimizer)
    stats, before = observe(model, units, probe, rule.saliency)
    selections = select_units(stats, rule, generator, _either(pruned, removed or {}))
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
    reasons = _reasons(rule, selections, gone)
    return Treatment("hyper-hypo", probe.samples, gone, counts, shift, reasons), selections


def _either(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the units that either marks; where the two see a group of different size, the first is right."""
    both = {**other, **one}
    for name in one.keys() & other.keys():
        if len(one[name]) == len(other[name]):
            both[name] = one[name] | other[name].cpu()
    return both


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
