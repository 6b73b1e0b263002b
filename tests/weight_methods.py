"""What the tests of the methods on whole weights share: plugins by name, networks, short runs."""

import torch
from stripping_streams import MultiHead, Network, everything, naive, run, same, stream
from torch import nn

from plasticity.plugins import (
    DASHPlugin,
    FIREPlugin,
    HareTortoisePlugin,
    L2InitPlugin,
    L2Plugin,
    NormalizeAndProjectPlugin,
    ShrinkPerturbPlugin,
    SpectralRegularizationPlugin,
)
from plasticity.probe import Probe

__all__ = ["MultiHead", "Network", "everything", "naive", "run", "same", "stream"]

PLUGINS = {
    "l2": L2Plugin,
    "l2-init": L2InitPlugin,
    "shrink-perturb": ShrinkPerturbPlugin,
    "shrink-perturb-step": lambda **rule: ShrinkPerturbPlugin("step", **rule),
    "shrink-perturb-interpolate": lambda **rule: ShrinkPerturbPlugin("interpolate", **rule),
    "fire": FIREPlugin,
    "dash": DASHPlugin,
    "spectral-regularization": SpectralRegularizationPlugin,
    "normalize-and-project": NormalizeAndProjectPlugin,
    "hare-tortoise": lambda **rule: HareTortoisePlugin(**{"reset_every": 4, "momentum": 0.9, **rule}),
}
IDLE = {
    "l2": {"strength": 0},
    "l2-init": {"strength": 0},
    "shrink-perturb": {"shrink": 1, "perturb": 0},
    "shrink-perturb-step": {"decay": 0, "noise": 0},
    "shrink-perturb-interpolate": {"strength": 0},
    "fire": {"strength": 0},
    "dash": {"threshold": 1},
    "spectral-regularization": {"strength": 0},
    "hare-tortoise": {"momentum": 0},
}
AT_BOUNDARIES = ("shrink-perturb", "shrink-perturb-interpolate", "fire", "dash")
PENALTIES = ("l2", "l2-init", "spectral-regularization")


def conv():
    """Convolutions, one of them in groups and one without a bias, BatchNorm, and a linear layer behind a flatten."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6, bias=False), nn.LayerNorm(6), nn.Linear(6, 3))


SHAPES = {mlp: (5,), conv: (3, 7, 7)}
STATEFUL = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


def trained(build, optimizer="adam", steps=3):
    """A network after a few steps, its optimizer, and a probe."""
    model = build()
    optimizer = STATEFUL[optimizer](model.parameters())
    inputs, targets = torch.randn(12, *SHAPES[build]), torch.randint(3, (12,))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model, optimizer, Probe([(inputs,)])


def copy_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def moved(model, before):
    """Names of parameters that have changed."""
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
