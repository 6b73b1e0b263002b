"""Networks for the tests of demon pruning, and by hand which of their units are dead and what writes them."""

import torch
from torch import nn


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 16, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


class Residual(nn.Module):
    """A stream that two blocks add to, behind LayerNorm in the second; its units are not private."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(4))
        self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.relu(self.stem(x))
        h = torch.relu(self.a(h) + self.b(x))
        return self.out(torch.relu(self.norm(self.c(h))) + h)


BUILDS = {"mlp": (mlp, (16, 6)), "conv": (convolutional, (16, 2, 8, 8)), "residual": (Residual, (16, 6))}


def silence_by_bias(model, numbers):
    """Make units of some layers dead: by name of the bias, their numbers."""
    with torch.no_grad():
        for name, index in numbers.items():
            model.get_parameter(name)[index] = -50.0
    return model


WRITERS = {
    "mlp": {"0": "0", "2": "2"},
    "conv": {"0": "0", "1": "0", "3": "3", "6": "6"},
    "residual": {"stem": "stem", "a": "a", "b": "a", "c": "c", "norm": "c"},
}
DEAD = {
    "mlp": {"0.bias": [1, 4], "2.bias": [0]},
    "conv": {"1.bias": [2], "3.bias": [0, 3], "6.bias": [4]},
    "residual": {"stem.bias": [3], "norm.bias": [1, 2]},
}
