"""Synaptic stripping in plain loops, weight by weight, on networks whose forward pass is written out."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Write:
    """A layer that writes units: unit u by row rows[u], scaled by channel channels[u] of a normaliser."""

    layer: str
    rows: list[int]
    norm: str | None = None
    channels: list[int] | None = None
    groups: int = 1


@dataclass
class Problem:
    """A network, its probe inputs and, by hand, what writes the units of each activation."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], torch.Tensor]
    writes: dict[str, list[Write]]
    forward: Callable[..., tuple]
    """From (state, x) to (activations by group, inputs by layer), units along dimension 1."""
    doomed: list[str] = field(default_factory=list)
    """Layers and normalisers whose bias is made so low that units die."""


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def conv(state, name, x, groups=1):
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), groups=groups)


def norm(state, name, x):
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean, variance, weight, bias = (
        state[f"{name}.{key}"].view(shape) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def row(values, removed, mean_input, sign, rule, signed_inputs):
    """Choose the connections of one unit to remove; all arguments but the last two are lists over connections."""
    remaining = [j for j in range(len(values)) if not removed[j] and values[j] != 0]
    if not remaining:
        return []
    if rule.score == "signed_weight":
        score = values
    elif rule.score == "auto" and not signed_inputs:
        if all(mean_input[j] == 0 for j in remaining):
            return []
        score = [v * sign for v in values]
    else:
        score = [v * x * sign for v, x in zip(values, mean_input, strict=True)]
    threshold = np.quantile([score[j] for j in remaining], rule.fraction)
    chosen = [j for j in remaining if score[j] < threshold]
    if rule.guard:
        negative = [j for j in remaining if score[j] < 0]
        chosen = [j for j in chosen if score[j] < 0]
        if negative and not chosen:
            chosen = [min(negative, key=lambda j: score[j])]
    room = int(np.floor(rule.max_row_sparsity * len(values) + 1e-9)) - (len(values) - len(remaining))
    return sorted(chosen, key=lambda j: (score[j], j))[: max(room, 0)]


def dead_units(activations):
    """Numbers of the units, along dimension 1, that are 0 everywhere."""
    return [u for u in range(activations.shape[1]) if float(activations[:, u].abs().sum()) == 0.0]


def strip(problem, state, x, rule):
    """Strip until nothing changes; changes `state` and returns removed connections, treated units and counts."""
    removed = {}
    treated, helped, first, rounds = set(), set(), None, 0
    while True:
        activations, inputs = problem.forward(state, x)
        dead = {(name, u) for name in problem.writes for u in dead_units(activations[name])}
        first = set(dead) if first is None else first
        if rounds == rule.rounds or not dead:
            break
        changed = False
        for name, unit in sorted(dead):
            raised = stripped = False
            for write in problem.writes[name]:
                if rule.fallback == "zero_bias" and write.norm and write.channels[unit] >= 0:
                    bias = state[f"{write.norm}.bias"]
                    if bias[write.channels[unit]] < 0:
                        bias[write.channels[unit]], raised = 0, True
            for write in problem.writes[name]:
                target = write.rows[unit]
                if raised or target < 0:
                    continue
                weight = state[f"{write.layer}.weight"]
                flat = weight[target].flatten()
                gone = removed.setdefault(write.layer, torch.zeros(weight.shape, dtype=torch.bool))
                means = inputs[write.layer].transpose(0, 1).flatten(1).mean(1)
                per_group, taps = weight.shape[1], flat.numel() // weight.shape[1]
                offset = per_group * (target // (len(weight) // write.groups))
                mean_input = [float(means[offset + j // taps]) for j in range(flat.numel())]
                negative = write.norm and write.channels[unit] >= 0
                sign = -1 if negative and state[f"{write.norm}.weight"][write.channels[unit]] < 0 else 1
                signed_inputs = bool((inputs[write.layer] < 0).any())
                for j in row(flat.tolist(), gone[target].flatten().tolist(), mean_input, sign, rule, signed_inputs):
                    weight[target].view(-1)[j] = 0
                    gone[target].view(-1)[j] = True
                    stripped = True
            if not raised and not stripped and rule.fallback == "zero_bias":
                for write in problem.writes[name]:
                    bias = state.get(f"{write.layer}.bias")
                    if write.rows[unit] >= 0 and bias is not None and bias[write.rows[unit]] < 0:
                        bias[write.rows[unit]], raised = 0, True
            changed = changed or raised or stripped
            if stripped:
                treated.add((name, unit))
            if raised:
                helped.add((name, unit))
        if not changed:
            break
        rounds += 1
    counts = {
        "dead": len(first),
        "stripped": len(treated),
        "fallback": len(helped),
        "connections": sum(int(gone.sum()) for gone in removed.values()),
        "revived": len(first - dead),
        "still_dead": len(dead),
        "rounds": rounds,
    }
    return removed, treated | helped, counts


# --- networks ---------------------------------------------------------------------------------------------------------


def mlp_forward(state, x):
    first = linear(state, "0", x).relu()
    second = linear(state, "2", first).relu()
    return {"0": first, "2": second}, {"0": x, "2": first, "4": second}


def conv_forward(state, x):
    first = conv(state, "0", x).relu()
    second = norm(state, "3", conv(state, "2", first, groups=2)).relu()
    third = linear(state, "6", second.flatten(1)).relu()
    return {"0": first, "2": second, "6": third}, {"0": x, "2": first, "6": second.flatten(1)}


class Branches(nn.Module):
    """Two layers, one of them normalised, added before the activation."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.norm, self.read = (
            nn.Linear(10, 12),
            nn.Linear(10, 12, bias=False),
            nn.BatchNorm1d(12),
            nn.Linear(12, 2),
        )

    def forward(self, x):
        return self.read(torch.relu(self.left(x) + self.norm(self.right(x))))


def branches_forward(state, x):
    h = (linear(state, "left", x) + norm(state, "norm", F.linear(x, state["right.weight"]))).relu()
    return {"left": h}, {"left": x, "right": x}


class Concatenated(nn.Module):
    """As in a DenseNet: what two layers write is concatenated, then normalised and activated."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm, self.read = (
            nn.Conv2d(2, 5, 3),
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(9),
            nn.Conv2d(9, 2, 1),
        )

    def forward(self, x):
        return self.read(torch.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))).flatten(1)


def concatenated_forward(state, x):
    h = norm(state, "norm", torch.cat([conv(state, "a", x), conv(state, "b", x)], 1)).relu()
    return {"a": h}, {"a": x, "b": x}


def _counting(size):
    return list(range(size))


PROBLEMS = {
    "mlp": Problem(
        lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 3)),
        lambda: torch.randn(60, 12).abs(),
        {"0": [Write("0", _counting(16))], "2": [Write("2", _counting(10))]},
        mlp_forward,
        ["0", "2"],
    ),
    "conv, grouped and normalised": Problem(
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 4, 9), nn.ReLU(), nn.Linear(9, 3),
        ),
        lambda: torch.randn(20, 2, 6, 6),
        {
            "0": [Write("0", _counting(6))],
            "2": [Write("2", _counting(8), "3", _counting(8), groups=2)],
            "6": [Write("6", _counting(9))],
        },
        conv_forward,
        ["0", "3", "6"],
    ),
    "two branches": Problem(
        Branches,
        lambda: torch.randn(60, 10) + 0.3,
        {"left": [Write("left", _counting(12)), Write("right", _counting(12), "norm", _counting(12))]},
        branches_forward,
        ["left", "norm"],
    ),
    "concatenated": Problem(
        Concatenated,
        lambda: torch.randn(20, 2, 5, 5),
        {
            "a": [
                Write("a", [*range(5), -1, -1, -1, -1], "norm", [*range(5), -1, -1, -1, -1]),
                Write("b", [-1] * 5 + [0, 1, 2, 3], "norm", [-1] * 5 + [5, 6, 7, 8]),
            ]
        },
        concatenated_forward,
        ["norm"],
    ),
}  # fmt: skip


def sick(problem, seed):
    """Build the network in double precision, with many dead units and normalisers of either sign."""
    torch.manual_seed(seed)
    model = problem.build().double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(module.weight), nn.init.normal_(module.running_mean, 0, 0.3)
                nn.init.uniform_(module.running_var, 0.2, 1)
        for name in problem.doomed:
            bias = model.get_submodule(name).bias
            bias -= torch.rand_like(bias) * torch.randint(0, 2, bias.shape) * 4
            weight = model.get_submodule(name).weight
            if weight.dim() > 1:
                weight -= torch.rand(len(weight), *[1] * (weight.dim() - 1)) * 0.4
    return model, problem.inputs().double()
