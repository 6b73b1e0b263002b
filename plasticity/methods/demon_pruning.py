"""Demon pruning: let units die on purpose while the network trains, and prune the dead ones.

Source: Dufort-Labbé et al. 2024, "Maxwell's Demon at Work: Efficient Pruning by Leveraging Saturation of Neurons",
arXiv 2403.07688, and its official code. Three things push units: a penalty on normaliser scales, noise that hits live
units only, and a one-cycle schedule of both. A unit that is 0 on all of a probe is pruned; nothing is lost by that.

What differs by default from the authors' code:

- the noise is kept away from whole units that are silent. The code asks whether an entry's gradient is zero, which a
  penalty on that entry keeps from being so, and in its latest revision lets every entry pass;
- layers without a normaliser get an L2 penalty on their incoming weights;
- units are judged on 2,048 training samples with classes in equal numbers, not on some 1,500 as they come: a unit may
  live for a rare class alone;
- a layer keeps at least one unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import UnitGroups, layer, unwrap
from plasticity.measures import dead_units
from plasticity.methods.demon_masks import PrunedUnits, still_dead, without
from plasticity.methods.demon_noise import Gate
from plasticity.methods.treatment import Treatment, because, dead_on
from plasticity.probe import Probe, output_shift
from plasticity.surgery.removal import Removal, removal_obstacle, remove_units
from plasticity.values import in_range

Mode = Literal["mask", "shrink"]
Regularise = Literal["scales", "weights"]
TOLERANCE = 5e-4
"""How far outputs may seem to move, by rounding, where nothing but dead units is taken out; see `output_shift`."""
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # of a forward pass after a removal


@dataclass(frozen=True)
class DemonRule:
    """How units are pushed to die.

    Attributes:
        regularisation: Peak strength of the penalty, at least 0; how many units die is steered by it.
        noise_std: Peak standard deviation of the noise in one step, in the units of the weights, at least 0.
        span: Share of all steps over which the cycle of both extends, in (0, 1]; after it both are 0.
        regularise: "scales": the L1 norm of normaliser scales, and half the squared L2 norm of the incoming weights
            where no normaliser is in front of the activation; "weights": the latter everywhere.
        gate: What keeps noise away, see `plasticity.methods.demon_noise.AsymmetricNoise`.
    """

    regularisation: float = 1e-3
    noise_std: float = 5e-5
    span: float = 0.85
    regularise: Regularise = "scales"
    gate: Gate = "units"

    def __post_init__(self) -> None:
        in_range("regularisation", self.regularisation)
        in_range("noise_std", self.noise_std)
        if in_range("span", self.span, 0.0, 1.0) == 0:
            raise UserError("span must lie above 0")
        for name, kind in (("regularise", Regularise), ("gate", Gate)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"unknown {name} {getattr(self, name)!r}; there are: {', '.join(get_args(kind))}")


PRESETS: dict[str, DemonRule] = {"default": DemonRule(), "dufortlabbe2024": DemonRule(span=0.87, gate="gradients")}


# --- the penalty -----------------------------------------------------------------------------------------------------


class Penalised(NamedTuple):
    """A parameter under the penalty.

    Attributes:
        parameter: The parameter.
        rows: (rows,) bool, which of them; None: all.
        lasso: Whether its L1 norm is penalised, else half its squared L2 norm.
    """

    parameter: nn.Parameter
    rows: Tensor | None
    lasso: bool


def penalised(model: nn.Module, units: UnitGroups, regularise: Regularise = "scales") -> list[Penalised]:
    """Return what the penalty acts on: normaliser scales or incoming weights of the units, each entry once."""
    marked: dict[int, tuple[nn.Parameter, Tensor, bool]] = {}
    for group in units:
        for write in group.writes:
            norm = None if write.norm is None else unwrap(model).get_submodule(write.norm)
            scale = getattr(norm, "weight", None)
            lasso = regularise == "scales" and isinstance(scale, nn.Parameter) and write.norm_rows is not None
            parameter = scale if lasso else layer(model, write.layer).weight
            rows = write.norm_rows if lasso else write.rows
            if isinstance(parameter, nn.Parameter) and rows is not None:
                entry = (parameter, torch.zeros(len(parameter), dtype=torch.bool), lasso)
                marked.setdefault(id(parameter), entry)[1][rows[rows >= 0]] = True
    return [Penalised(p, None if bool(rows.all()) else rows.to(p.device), lasso) for p, rows, lasso in marked.values()]


def add_penalty_gradient(entries: list[Penalised], strength: float, scale: Tensor | None = None) -> None:
    """Add the gradient of the penalty, times its strength, to those of the parameters that have one.

    Args:
        entries: What it acts on.
        strength: Of the penalty.
        scale: 0-dim, by which the loss was multiplied before the backward pass; None: 1.
    """
    gradients, pulls = [], []
    with torch.no_grad():
        for parameter, rows, lasso in entries:
            if parameter.grad is not None:
                pull = parameter.sign() if lasso else parameter.detach()
                pull = pull if scale is None else pull * scale
                gradients.append(parameter.grad)
                pulls.append(pull if rows is None else pull * rows.view(-1, *[1] * (pull.dim() - 1)))
        if gradients:
            torch._foreach_add_(gradients, pulls, alpha=strength)


# --- pruning ---------------------------------------------------------------------------------------------------------


class Pruning(NamedTuple):
    """What `prune_dead_units` did.

    Attributes:
        report: The numbers.
        removal: What was removed physically, or None.
        left: Groups with dead units that were not removed or not pruned, and why, in words.
    """

    report: Treatment
    removal: Removal | None
    left: dict[str, str]


def prune_dead_units(
    model: nn.Module,
    units: UnitGroups,
    probe: Probe,
    pruned: PrunedUnits,
    mode: Mode = "mask",
    optimizer: Optimizer | None = None,
) -> Pruning:
    """Prune the units that are 0 on all of a probe, so that the outputs on it stay equal.

    Mode "mask": the outgoing weights of private units become 0 for good, and so does all that writes them. Of other
    units only the latter does, if they stay 0 and the outputs stay equal: a sum with a shortcut may be 0 only because
    of what its layer writes.

    Mode "shrink": private units are removed physically where the network runs on without them and its outputs stay
    equal within rounding; all others are masked.

    Args:
        model: The network.
        units: Its groups; in mode "shrink" they have to be found again where something was removed.
        probe: Training inputs, seen in eval mode.
        pruned: Takes up what is masked, and holds what was before.
        mode: "mask" or "shrink".
        optimizer: The network's optimizer.

    Returns:
        What was done. The report's counts are "dead" units, those "masked" and "removed", those "spared" as the last
        of their layer, those "left" alone, how many "alive_units" are not pruned, the "pruned_fraction" of all units
        that there ever were, and the "parameters" that remain.
    """
    activity, before = probe.watch(model, units)
    stats = activity.statistics()
    found = {name: dead_units(stat).cpu() & ~pruned.of(units[name]) for name, stat in stats.items()}
    spared = 0
    candidates: dict[str, Tensor] = {}
    for name, dead in found.items():
        index = dead.nonzero().flatten()
        if len(index) and bool((dead | pruned.of(units[name])).all()):
            index, spared = index[1:], spared + 1
        if len(index):
            candidates[name] = index
    left: dict[str, str] = {}
    removable = _removable(model, units, probe, before, candidates, optimizer, left) if mode == "shrink" else {}
    masked: dict[str, Tensor] = {}
    for name, index in candidates.items():
        if name not in removable and units[name].private:
            pruned.mask_readers(model, units[name], index, optimizer)
            pruned.mask_writers(model, units[name], index, optimizer)
            masked[name] = index
    others = {name: index for name, index in candidates.items() if not units[name].private}
    for name, index in _silent(model, units, probe, before, others).items():
        pruned.mask_writers(model, units[name], index, optimizer)
        masked[name] = index
    for name, index in others.items():
        if len(masked.get(name, ())) < len(index):
            left[name] = "outputs would change if nothing were written to its dead units"
    removal = None
    sizes = {group.name: group.size for group in units}
    if removable:
        removal = remove_units(model, units, removable, optimizer)
        removal.forget()
        pruned.follow(removal)
        sizes.update({name: int(kept.sum()) for name, kept in removal.units.items()})
    hidden = sum(int(pruned.units[name].sum()) for name in sizes if name in pruned.units)
    alive = sum(sizes.values()) - hidden
    count = {"masked": _total(masked), "removed": _total(removable)}
    report = Treatment(
        method="demon-pruning",
        samples=probe.samples,
        units={name: index.tolist() for name, index in {**masked, **removable}.items()},
        counts={
            "dead": sum(int(dead.sum()) for dead in found.values()),
            **count,
            "spared": spared,
            "left": _total(candidates) - sum(count.values()),
            "alive_units": alive,
            "pruned_fraction": 1 - alive / (alive + hidden + pruned.removed),
            "parameters": pruned.unmasked(model),
        },
        output_shift=output_shift(before, probe.outputs(model)) if masked or removable else 0.0,
        reasons=because(
            {
                f"{dead_on(probe.samples)}; masked": masked,
                f"{dead_on(probe.samples)}; removed": removable,
            }
        ),
    )
    return Pruning(report, removal, left)


def _total(index: Mapping[str, Tensor]) -> int:
    return sum(len(numbers) for numbers in index.values())


def _removable(
    model: nn.Module,
    units: UnitGroups,
    probe: Probe,
    before: Tensor,
    candidates: Mapping[str, Tensor],
    optimizer: Optimizer | None,
    left: dict[str, str],
) -> dict[str, Tensor]:
    """Return those units that the network runs on without, and put into `left` why the others are not among them."""
    hopeful: dict[str, Tensor] = {}
    for name, index in candidates.items():
        obstacle = removal_obstacle(model, units[name], optimizer)
        if obstacle is None:
            hopeful[name] = index
        else:
            left[name] = f"masked, not removed: {obstacle}"

    def attempt(index: Mapping[str, Tensor]) -> str | None:
        removal = remove_units(model, units, index, optimizer)
        try:
            after = probe.outputs(model)
        except _FAILURES as error:
            return f"the network does not run without them ({str(error).splitlines()[0] if str(error) else error!r})"
        finally:
            removal.undo()
        return None if _equal(before, after) else "the outputs would change"

    return _accepted(hopeful, attempt, lambda name, why: left.__setitem__(name, f"masked, not removed: {why}"))


def _silent(
    model: nn.Module, units: UnitGroups, probe: Probe, before: Tensor, candidates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return those of some dead units to which nothing need be written for the outputs to stay equal."""
    if not candidates:
        return {}
    hopeful = still_dead(probe, model, units, candidates)

    def attempt(index: Mapping[str, Tensor]) -> str | None:
        with without(model, units, index):
            after = probe.outputs(model)
        return None if _equal(before, after) else "the outputs would change"

    return _accepted(hopeful, attempt, lambda name, why: None)


def _accepted(
    index: dict[str, Tensor], attempt: Callable[[Mapping[str, Tensor]], str | None], refuse: Callable[[str, str], None]
) -> dict[str, Tensor]:
    """Return the groups that pass an attempt together, or those that do alone and together with each other."""
    if not index or attempt(index) is None:
        return index
    accepted: dict[str, Tensor] = {}
    for name, numbers in index.items():
        why = attempt({**accepted, name: numbers})
        if why is None:
            accepted[name] = numbers
        else:
            refuse(name, why)
    return accepted


def _equal(before: Tensor, after: Tensor) -> bool:
    return before.shape == after.shape and output_shift(before, after) <= TOLERANCE
