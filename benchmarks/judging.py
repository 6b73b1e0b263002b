"""What a run asks of its network after every experience: how its units are, on always the same samples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from benchmarks.evaluating import ExperienceTensors
from plasticity import find_units, measures
from plasticity.errors import UserError
from plasticity.finiteness import nonfinite_activity, nonfinite_weights
from plasticity.probe import Probe, balanced

PROBE_SAMPLES = 2048

TITLES = {
    "dead_fraction": "DeadUnits",
    "dormant_fraction": "DormantUnits",
    "over_active_fraction": "OverActiveUnits",
    "effective_rank": "EffectiveRank",
    "weight_magnitude": "WeightMagnitude",
    "gradient_norm": "GradientNorm",
}
"""What of it is also a metric, and its name there."""


def judge_units(model: nn.Module, data: ExperienceTensors) -> dict[str, Any]:
    """Judge the units of a network on a fixed probe of an experience's training samples."""
    probe, _ = samples(model, data, PROBE_SAMPLES)
    groups = find_units(model, probe.example())
    if len(groups) == 0:
        raise UserError(f"the model ({type(model).__name__}) has no hidden units to watch")
    activity, outputs = probe.watch(model, groups, features=PROBE_SAMPLES)
    stats = {name: stat for name, stat in activity.statistics().items() if stat.count}
    features = activity.features()
    shares = {
        "dead": measures.dead_fraction,
        "dormant": measures.dormant_fraction,
        "over_active": measures.over_active_fraction,
    }
    return {
        "samples": probe.samples,
        "layers": {
            name: {"size": len(stat.fired), **{key: float(share(stat)) for key, share in shares.items()}}
            for name, stat in stats.items()
        },
        **{f"{key}_fraction": float(share(stats)) for key, share in shares.items()},
        "effective_rank": None if features is None else finite(measures.effective_rank(features)),
        "weight_magnitude": finite(measures.weight_magnitude(model)),
        **diverged(nonfinite_weights(model) or nonfinite_activity(stats, outputs)),
    }


def diverged(reason: str | None) -> dict[str, str]:
    """Return what an entry of the units says of a network that is not finite; nothing if it is."""
    return {} if reason is None else {"diverged": reason}


def first_diverged(units: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return what a result says of a run whose network or loss was not finite after an experience, else nothing.

    Args:
        units: What the units were like after each experience.
    """
    found = [index for index, entry in enumerate(units) if "diverged" in entry]
    return {"diverged": found[0]} if found else {}


def samples(model: nn.Module, data: ExperienceTensors, count: int) -> tuple[Probe, Tensor]:
    """Choose samples, as far as possible equally many of each class, and always the same ones; and their classes."""
    order = torch.randperm(len(data.targets), generator=torch.Generator().manual_seed(0))
    chosen = balanced(Probe([(order,)]), data.targets.cpu()[order], count)
    rows = [rows.to(data.targets.device) for (rows,) in chosen.batches]
    heads = is_multi_task_module(model)
    return Probe([inputs(data, each, heads) for each in rows]), data.targets[torch.cat(rows)]


def inputs(data: ExperienceTensors, rows: Tensor | slice, task_labels: bool) -> tuple[Tensor, ...]:
    """Return the positional inputs of a network for some samples."""
    if task_labels and data.tasks is not None:
        return data.inputs[rows], data.tasks[rows]
    return (data.inputs[rows],)


def finite(value: Tensor | float) -> float | None:
    """Return a number as results hold it: None where it is infinite or none, as of a network that has diverged."""
    number = float(value)
    return number if math.isfinite(number) else None
