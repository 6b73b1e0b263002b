"""Small networks whose units are reset, and by hand which weights that concerns."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


class TwoReaders(nn.Module):
    """One hidden layer, read by two layers."""

    def __init__(self):
        super().__init__()
        self.write, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x):
        h = torch.relu(self.write(x))
        return torch.cat([self.left(h), self.right(h)], dim=1)


@dataclass
class Net:
    """A network, its input, the group to treat, and which weights read a unit: reader -> [index into its weight]."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    group: str
    readers: Callable[[int], dict[str, list]]


def conv_flatten():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 5), nn.ReLU(),
        nn.Linear(5, 3),
    )  # fmt: skip


NETS = {
    "linear": Net(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)),
        (7, 6),
        "0",
        lambda u: {"2": [(slice(None), u)]},
    ),
    "two readers": Net(TwoReaders, (7, 6), "write", lambda u: {r: [(slice(None), u)] for r in ("left", "right")}),
    "flatten": Net(conv_flatten, (5, 2, 6, 6), "0", lambda u: {"4": [(slice(None), slice(9 * u, 9 * u + 9))]}),
    "batch norm": Net(
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 3), nn.Flatten(1)
        ),
        (5, 2, 8, 8),
        "0",
        lambda u: {"3": [(slice(None), u)]},
    ),
    "grouped": Net(  # 3 groups of 4 output rows; each row has columns for the 2 channels of its group
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=3), nn.Flatten(1)),
        (5, 2, 8, 8),
        "0",
        lambda u: {"2": [(slice(4 * (u // 2), 4 * (u // 2) + 4), u % 2)]},
    ),
    "depthwise": Net(
        lambda: nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Conv1d(6, 6, 3, groups=6), nn.ReLU(), nn.Flatten(1)),
        (5, 2, 9),
        "0",
        lambda u: {"2": [(u,)]},
    ),
}
UNITS = [1, 3]


def outgoing_by_hand(net, model):
    """Map the name of each reader's weight to True where it reads one of UNITS."""
    found = {}
    for unit in UNITS:
        for reader, places in net.readers(unit).items():
            weight = model.get_submodule(reader).weight
            where = found.setdefault(f"{reader}.weight", torch.zeros_like(weight, dtype=torch.bool))
            for place in places:
                where[place] = True
    return found


def incoming_by_hand(net, model):
    """Map the name of each writing parameter and buffer to True where it writes one of UNITS."""
    found = {}
    for name in (net.group, "1"):
        module = model.get_submodule(name) if name in dict(model.named_modules()) else None
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.BatchNorm2d):
            for key, tensor in module.state_dict().items():
                if tensor.dim():
                    found[f"{name}.{key}"] = torch.zeros_like(tensor, dtype=torch.bool)
                    found[f"{name}.{key}"][UNITS] = True
    return found


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
