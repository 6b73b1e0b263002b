"""What tests of strategies by name share: how each acts within a few mini-batches, and how one sees that it did."""

import torch
from avalanche.training.plugins import ReplayPlugin
from torch import nn

from plasticity.architecture import CReLU
from plasticity.optim import UPGD

OPTIONS = {
    "redo": "every=2",
    "gradient-dormancy": "every=2:batches=2",
    "continual-backprop": "replacement_rate=0.1:maturity=1",
    "self-normalized-resets": "maximum_age=6:check_every=1:maximum_share=1",
    "hare-tortoise": "reset_every=2",
    "adaptive": "dead=0.01",
    "normalize-and-project": "normaliser_decay=0.1",
    "hyper-hypo": "percent=10",
    "hyper-hypo-random": "percent=10",
}
"""Options with which a strategy acts at once, on networks of which `with_dead_units` has silenced a few units."""

COUNTS = {
    **dict.fromkeys(("synaptic-stripping", "synaptic-stripping-whitaker2023"), ("stripped", "fallback")),
    **dict.fromkeys(("hyper-hypo", "hyper-hypo-random"), ("selected",)),
    **dict.fromkeys(
        ("redo", "gradient-dormancy", "continual-backprop", "self-normalized-resets"),
        ("recycled",),
    ),
    **dict.fromkeys(("shrink-perturb", "shrink-perturb-interpolate", "fire", "dash"), ("relative_change",)),
    **dict.fromkeys(
        ("shrink-perturb-step", "l2", "l2-init", "spectral-regularization", "normalize-and-project"), ("steps",)
    ),
    "hare-tortoise": ("resets",),
    "demon-pruning": ("masked",),
    "demon-pruning-shrink": ("masked", "removed"),
    "plasticity-injection": ("frozen_parameters",),
    "adaptive": ("treated",),
}
"""What of a method's reports says how much it has done."""

BESIDE = ("naive", "fresh", "replay", "upgd", "layer-norm", "leaky-relu", "crelu")
"""Strategies that report nothing; how else one sees that they act is in `acts`."""


def acting(name):
    """The name of a strategy with options with which it acts within a few mini-batches."""
    return f"{name}:{OPTIONS[name]}" if name in OPTIONS else name


def with_dead_units(network):
    """Silence three units of the first layer whose units may be made new, for any input."""
    names = dict(network.named_modules())
    first = next(name for name in ("layer1.0.bn1", "trunk.conv1", "trunk.linear1") if name in names)
    with torch.no_grad():
        # More than any input makes up for; a shift behind normalised inputs need not be as large.
        names[first].bias[:3] = -10.0 if isinstance(names[first], nn.BatchNorm2d) else -100.0
    return network


def acts(name, strategy, reports):
    """Whether a strategy, given without options, has done what it is there for.

    Args:
        name: Its name.
        strategy: The Avalanche strategy after training.
        reports: The entries of its plugins' histories.
    """
    if name in COUNTS:
        return sum(report.get(count, 0) for report in reports for count in COUNTS[name]) > 0
    modules = list(strategy.model.modules())
    return {
        "naive": lambda: not reports,
        "fresh": lambda: any(getattr(plugin, "experiences", 0) > 1 for plugin in strategy.plugins),
        "replay": lambda: any(len(p.storage_policy.buffer) for p in strategy.plugins if isinstance(p, ReplayPlugin)),
        "upgd": lambda: isinstance(strategy.optimizer, UPGD) and len(strategy.optimizer.state) > 0,
        "layer-norm": lambda: any(isinstance(module, nn.LayerNorm | nn.GroupNorm) for module in modules),
        "leaky-relu": lambda: _has(modules, nn.LeakyReLU),
        "crelu": lambda: _has(modules, CReLU),
    }[name]()


def _has(modules, kind):
    """Whether there are activations of one kind alone."""
    return any(isinstance(module, kind) for module in modules) and not any(isinstance(m, nn.ReLU) for m in modules)
