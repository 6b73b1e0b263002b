"""Synaptic stripping: remove the most negative incoming connections of dead units, for good, so that they fire again.

Source: Whitaker and Whitley 2023, "Synaptic Stripping: How Pruning Can Bring Dead Neurons Back To Life",
arXiv 2302.05818, and its official code. The authors judge units on the test set and strip after every epoch; here
units are judged on training inputs. Their rule is `PRESETS["whitaker2023"]`. The default rule differs where theirs
cannot work:

- where a layer's inputs have either sign, it ranks connections by their mean contribution w_j E[x_j] instead of w_j,
  since a negative weight holds a unit down only where its input is positive;
- it never removes a connection that helps (the authors' 5% quantile removes positive ones once no negative is left);
- where nothing is left to remove, or a normaliser's shift holds the unit down, a negative bias or shift becomes 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, Write, layer, unwrap
from plasticity.measures import dead_units
from plasticity.methods.treatment import Treatment, dead_on
from plasticity.probe import Probe, output_shift
from plasticity.surgery import reinitialise
from plasticity.surgery.masks import Masks
from plasticity.surgery.optimizer_state import clean_state
from plasticity.values import check_count, check_flag, check_shares
from plasticity.watching.activity import Activity

Score = Literal["auto", "signed_contribution", "signed_weight"]
Fallback = Literal["zero_bias", "reinitialise", "none"]


@dataclass(frozen=True)
class StrippingRule:
    """How dead units are stripped.

    Attributes:
        fraction: Share of a unit's remaining connections below whose quantile connections go, in [0, 1]; 0 leaves the
            network alone.
        score: What ranks connections: "signed_weight", as the authors do; "signed_contribution", weight times mean
            input; or "auto", the weight for layers whose inputs are never negative on the probe, else the contribution.
            The last two turn round behind a normaliser of negative scale and where what the layer writes is
            subtracted; where its sign is not known they remove nothing.
        guard: Remove only connections with a negative score, and at least one while there is any.
        fallback: For units that stripping cannot help: "zero_bias" raises a negative bias (or a normaliser's negative
            shift) to 0, "reinitialise" makes a private unit new, "none" leaves them dead.
        max_row_sparsity: Largest share of a unit's connections that may ever be removed, in [0, 1].
        rounds: How often to strip and look again in one treatment, at most.
        clean_optimizer: Whether to zero the optimizer state of what is removed.
    """

    fraction: float = 0.05
    score: Score = "auto"
    guard: bool = True
    fallback: Fallback = "zero_bias"
    max_row_sparsity: float = 0.9
    rounds: int = 20
    clean_optimizer: bool = True

    def __post_init__(self) -> None:
        check_shares(self, "fraction", "max_row_sparsity")
        check_count("rounds", self.rounds, 0)
        for name in ("guard", "clean_optimizer"):
            check_flag(name, getattr(self, name))
        for name, kind in (("score", Score), ("fallback", Fallback)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"unknown {name} {getattr(self, name)!r}; there are: {', '.join(get_args(kind))}")


_AT_ONCE = 2**22  # connections of dead units ranked at a time
PRESETS: dict[str, StrippingRule] = {
    "default": StrippingRule(),
    "whitaker2023": StrippingRule(
        score="signed_weight", guard=False, fallback="none", max_row_sparsity=1.0, rounds=1, clean_optimizer=False
    ),
}


def strip_dead_units(
    model: nn.Module,
    units: UnitGroups,
    probe: Probe,
    masks: Masks,
    rule: StrippingRule = PRESETS["default"],
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> Treatment:
    """Find the dead units of a network and strip them until they fire or nothing is left to strip.

    Only incoming connections change, so groups need not be private.

    Args:
        model: The network.
        units: Its groups.
        probe: Training inputs; a unit is dead if it is exactly 0 on all of them, in eval mode.
        masks: Takes up the removed connections, and holds those removed before.
        rule: How to strip.
        optimizer: The network's optimizer.
        generator: Where the weights of reinitialised units come from.

    Returns:
        The report. Its counts are "dead" (before), "stripped" units, removed "connections", units helped by the
        fallback ("fallback"), "revived" units, units "still_dead" (after, with any that died meanwhile), "rounds", and
        the "removed_fraction" of the weights of all layers ever stripped.
    """
    treated: dict[str, Tensor] = {}
    helped: dict[str, Tensor] = {}
    first_dead: dict[str, Tensor] = {}
    dead: dict[str, Tensor] = {}
    before: Tensor | None = None
    connections, rounds = masks.removed(), 0
    collected: bool | set[str] = rule.score != "signed_weight"
    for attempt in range(rule.rounds + 1):
        activity, outputs = probe.watch(model, units, inputs=collected)
        dead = {name: dead_units(stat) for name, stat in activity.statistics().items() if stat.count}
        if before is None:
            before, first_dead = outputs, dead
        counts = torch.stack([mask.sum() for mask in dead.values()]).tolist() if dead else []
        if attempt == rule.rounds or rule.fraction == 0 or not any(counts):
            break
        if collected is not False:  # later rounds need the inputs of those layers only whose units are dead
            collected = {
                write.layer for name, count in zip(dead, counts, strict=True) if count for write in units[name].writes
            }
            if not collected <= set(activity.input_means()):
                activity, _ = probe.watch(model, units, inputs=collected)
        inputs = _layer_inputs(activity, rule)
        changed = False
        for (name, mask), count in zip(dead.items(), counts, strict=True):
            if count:
                index = mask.nonzero().flatten()
                stripped, raised = _treat(model, units[name], index, inputs, masks, rule, optimizer, generator)
                _note(treated, name, index[stripped], mask)
                _note(helped, name, index[raised], mask)
                changed = changed or bool(stripped.any()) or bool(raised.any())
        if not changed:
            break
        rounds += 1
    assert before is not None
    touched = {
        name: sorted({*_numbers(treated.get(name)), *_numbers(helped.get(name))}) for name in {**treated, **helped}
    }
    revived = sum(int((mask & ~dead[name]).sum()) for name, mask in first_dead.items())
    return Treatment(
        method="synaptic-stripping",
        samples=probe.samples,
        units=touched,
        counts={
            "dead": sum(int(mask.sum()) for mask in first_dead.values()),
            "stripped": sum(len(_numbers(mask)) for mask in treated.values()),
            "fallback": sum(len(_numbers(mask)) for mask in helped.values()),
            "connections": masks.removed() - connections,
            "revived": revived,
            "still_dead": sum(int(mask.sum()) for mask in dead.values()),
            "rounds": rounds,
            "removed_fraction": masks.removed_fraction(),
        },
        output_shift=output_shift(before, outputs) if rounds else 0.0,
        reasons={dead_on(probe.samples): touched} if touched else {},
    )


class LayerInputs(NamedTuple):
    """What a writing layer gets: the mean of each (input features or channels,), and whether any is ever negative."""

    mean: Tensor
    signed: bool


def _layer_inputs(activity: Activity, rule: StrippingRule) -> dict[str, LayerInputs]:
    """Return the inputs of the writing layers, where the score needs them."""
    if rule.score == "signed_weight":
        return {}
    minima = activity.input_minima()
    return {name: LayerInputs(mean, float(minima[name]) < 0) for name, mean in activity.input_means().items()}


def _note(noted: dict[str, Tensor], name: str, index: Tensor, like: Tensor) -> None:
    if len(index):
        noted.setdefault(name, torch.zeros_like(like))[index] = True


def _numbers(mask: Tensor | None) -> list[int]:
    return [] if mask is None else [int(number) for number in mask.nonzero().flatten().tolist()]


def _treat(
    model: nn.Module,
    group: UnitGroup,
    index: Tensor,
    inputs: dict[str, LayerInputs],
    masks: Masks,
    rule: StrippingRule,
    optimizer: Optimizer | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Strip some units of a group once; returns which were stripped and which got the fallback, both (n,)."""
    raised = torch.zeros(len(index), dtype=torch.bool, device=index.device)
    if rule.fallback == "zero_bias":
        for write in group.writes:  # a normaliser undoes what stripping gains, so its shift goes first
            if write.norm is not None and write.norm_rows is not None:
                norm = unwrap(model).get_submodule(write.norm)
                raised |= _raise_to_zero(norm, write.norm_rows, index, optimizer, write.direction)
    stripped = torch.zeros_like(raised)
    cleaned = optimizer if rule.clean_optimizer else None
    for write in group.writes:
        chosen = index[~raised]
        if len(chosen) == 0:
            break
        weight = layer(model, write.layer).weight
        assert isinstance(weight, Tensor)
        # Not `zeros_like`: of weights with their channels last in memory that cannot be seen as rows.
        where = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device).view(len(weight), -1)
        some = []
        for rows in write.rows.to(index.device)[chosen].split(max(1, _AT_ONCE // where.shape[1])):
            remove = select_connections(model, write, rows, inputs.get(write.layer), masks, rule)
            where[rows[rows >= 0]] |= remove[rows >= 0]
            some.append(remove.any(1))
        found = torch.cat(some)
        if bool(found.any()):
            masks.remove(model, write.layer, where.view_as(weight), cleaned)
            stripped[~raised] |= found
    exhausted = ~raised & ~stripped
    if rule.fallback == "zero_bias" and bool(exhausted.any()):
        for write in group.writes:
            module = layer(model, write.layer)
            raised |= _raise_to_zero(module, write.rows, index, optimizer, write.direction, exhausted)
    elif rule.fallback == "reinitialise" and group.private and bool(exhausted.any()):
        reinitialise(model, group, index[exhausted], optimizer, generator, masks=masks)
        raised |= exhausted
    return stripped, raised


def select_connections(
    model: nn.Module, write: Write, rows: Tensor, inputs: LayerInputs | None, masks: Masks, rule: StrippingRule
) -> Tensor:
    """Choose the connections to remove from some rows of a layer.

    Args:
        model: The network.
        write: The layer, and the normaliser behind it.
        rows: (n,) output rows; -1 stands for a unit that the layer does not write, from which nothing goes.
        inputs: What the layer gets; needed unless the score is "signed_weight".
        masks: Connections removed before, which do not count as remaining.
        rule: How to choose.

    Returns:
        (n, connections of a row) boolean, True for those to remove: the ones below the quantile `rule.fraction` of the
        remaining ones, interpolated linearly.
    """
    module = layer(model, write.layer)
    weight = module.weight
    assert isinstance(weight, Tensor)
    flat = weight.detach().reshape(len(weight), -1)
    picked = rows.clamp(min=0)
    values = flat[picked]
    remaining = masks.kept(model, write.layer).reshape(len(weight), -1)[picked] & (values != 0) & (rows >= 0)[:, None]
    score = values if values.dtype in (torch.float32, torch.float64) else values.float()
    if rule.score != "signed_weight":
        if inputs is None:
            raise UserError(
                f"the inputs of layer '{write.layer}' cannot be seen, since its weight is used without calling it; "
                'strip by score="signed_weight"'
            )
        score = score * write.direction * _sign_behind(model, write, picked).to(score.dtype)[:, None]
        remaining &= write.direction != 0
        mean = _inputs_of_rows(module, weight, picked, inputs.mean)
        if rule.score == "signed_contribution" or inputs.signed:
            score = score * mean  # double precision, as the mean inputs
        else:  # where no input is ever there, taking connections away is of no help
            remaining &= (remaining & (mean != 0)).any(1, keepdim=True)
    candidates = remaining & (score < _quantile(score, remaining, rule.fraction))
    if rule.guard:
        negative = remaining & (score < 0)
        candidates &= negative
        lowest = torch.where(negative, score, float("inf")).argmin(1, keepdim=True)
        needs_one = negative.any(1, keepdim=True) & ~candidates.any(1, keepdim=True)
        if rule.fraction > 0:
            candidates |= torch.zeros_like(candidates).scatter(1, lowest, needs_one)
    width = score.shape[1]
    room = int(rule.max_row_sparsity * width + 1e-9) - (width - remaining.sum(1, keepdim=True))
    order = torch.where(candidates, score, float("inf")).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    chosen: Tensor = candidates & (order < room)
    return chosen


def _quantile(values: Tensor, among: Tensor, fraction: float) -> Tensor:
    """Return the quantile of some values of each row, (n, 1); as `torch.quantile`, which takes no large tensors."""
    ordered = torch.where(among, values, float("inf")).sort(1).values
    last = (among.sum(1, keepdim=True) - 1).clamp(min=0)
    place = last.to(values.dtype) * fraction
    lower, upper = ordered.gather(1, place.floor().long()), ordered.gather(1, place.ceil().long())
    return torch.lerp(lower, upper, place - place.floor())


def _inputs_of_rows(module: nn.Module, weight: Tensor, rows: Tensor, mean_input: Tensor) -> Tensor:
    """Return the mean input behind each connection, (n, connections of a row)."""
    groups = int(getattr(module, "groups", 1))
    per_group = mean_input.view(groups, -1)[rows // (len(weight) // groups)]
    taps = weight[0, 0].numel()
    return per_group.repeat_interleave(taps, dim=1)


def _sign_behind(model: nn.Module, write: Write, rows: Tensor) -> Tensor:
    """Return the sign that a normaliser gives a row: a negative scale turns connections round, one of 0 hides them."""
    sign = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    if write.norm is None or write.norm_rows is None:
        return sign
    scale = getattr(unwrap(model).get_submodule(write.norm), "weight", None)
    if not isinstance(scale, Tensor) or scale.dim() != 1:
        return sign
    channel_of_row = torch.full((int(write.rows.max()) + 1,), -1, dtype=torch.int64)
    written = write.rows >= 0
    channel_of_row[write.rows[written]] = write.norm_rows[written]
    channels = channel_of_row.to(rows.device)[rows]
    return torch.where(channels >= 0, scale.detach().sign().to(torch.float64)[channels.clamp(min=0)], sign)


def _raise_to_zero(
    module: nn.Module,
    rows: Tensor,
    index: Tensor,
    optimizer: Optimizer | None,
    direction: int,
    only: Tensor | None = None,
) -> Tensor:
    """Set biases that hold some units down to 0: negative ones, or positive where signs are turned round, -1.

    Returns:
        (n,) for which units.
    """
    bias = getattr(module, "bias", None)
    if not isinstance(bias, Tensor) or bias.dim() != 1:
        return torch.zeros(len(index), dtype=torch.bool, device=index.device)
    places = rows.to(index.device)[index]
    negative = (places >= 0) & (direction * bias.detach()[places.clamp(min=0)] < 0)
    if only is not None:
        negative &= only
    where = torch.zeros_like(bias, dtype=torch.bool)
    where[places[negative]] = True
    with torch.no_grad():
        bias.masked_fill_(where, 0)
    clean_state(optimizer, bias, where)
    return negative
