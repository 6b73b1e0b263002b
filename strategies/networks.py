"""Strategies that are another optimizer or another network."""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.values import check_flag, in_range
from strategies.builtin import plugin
from strategies.registry import Context, register

if TYPE_CHECKING:
    from avalanche.training.plugins import SupervisedPlugin


def _nothing_else(context: Context) -> "list[SupervisedPlugin[Any]]":
    return []


def upgd(
    parameters: list[nn.Parameter], kind: str, learning_rate: float, *, rate: float | None = None, **options: Any
) -> Optimizer:
    """UPGD, which steps as plain gradient descent does.

    Args:
        parameters: What to train.
        kind: The run's optimizer.
        learning_rate: Its step size.
        rate: Step size in units of it; None: 10 where it is one of Adam's or AdamW's, else 1.
        **options: Arguments of `plasticity.optim.UPGD`.
    """
    from plasticity.optim import UPGD

    if rate is None:
        rate = 1 if kind == "sgd" else 10
    if "exclude" in options:
        raise UserError(
            "upgd has no exclude: an optimizer knows parameters, not layers; in code of your own give what it is to "
            "leave alone a group, see docs/plugins.md"
        )
    known = [name for name in inspect.signature(UPGD.__init__).parameters if name not in ("self", "params")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"upgd has no option {unknown[0]!r}; there are: rate, {', '.join(known)}")
    rate = in_range("rate", rate)
    return UPGD(parameters, **{"lr": rate * learning_rate, "seed": torch.initial_seed() % 2**63, **options})


def layer_norm(network: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    """Put a normaliser before every activation (arXiv 2402.18762)."""
    from plasticity.architecture import with_layer_norm

    return with_layer_norm(network, example)


def normalized(network: nn.Module, example: tuple[Any, ...], *, layer_norm: bool = True) -> nn.Module:
    """The network of normalize-and-project, which has a normaliser before every activation (arXiv 2407.01800)."""
    from plasticity.architecture import with_layer_norm

    return with_layer_norm(network, example) if check_flag("layer_norm", layer_norm) else network


def project(
    context: Context, *, normaliser_decay: float = 0.0, exclude: str | None = None, dry_run: bool = False
) -> "list[SupervisedPlugin[Any]]":
    """Weights keep their initial norms (arXiv 2407.01800)."""
    options = {"normaliser_decay": normaliser_decay, "exclude": exclude, "dry_run": dry_run}
    return plugin("NormalizeAndProjectPlugin")(context, **options)


def leaky_relu(network: nn.Module, example: tuple[Any, ...], *, slope: float = 0.01) -> nn.Module:
    """Leaky ReLU at all hidden units."""
    from plasticity.architecture import with_activation

    slope = in_range("slope", slope, 0, 1)
    return with_activation(network, example, lambda: nn.LeakyReLU(slope))


def crelu(network: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    """Concatenated ReLU in narrower layers (arXiv 2303.07507)."""
    from plasticity.architecture import with_crelu

    return with_crelu(network, example)


def plasticity_injection(
    context: Context, *, share: float = 0.5, exclude: str | None = None, dry_run: bool = False
) -> "list[SupervisedPlugin[Any]]":
    """A new head in the course of the stream, with the old one frozen (arXiv 2305.15555).

    Args:
        context: The run.
        share: Where in the stream, from 0 to 1.
        exclude: Layers that the head must not have.
        dry_run: Inject nothing, but say what would be.
    """
    experience = max(1, int(in_range("share", share, 0, 1) * context.experiences))
    return plugin("PlasticityInjectionPlugin")(context, experience=experience, exclude=exclude, dry_run=dry_run)


register(
    "upgd",
    _nothing_else,
    "the optimizer UPGD: protect useful weights and perturb the others",
    optimizer=upgd,
    configurations=("", "rate=30", "rate=100", "rate=30:sigma=0.01"),
)
register(
    "normalize-and-project",
    project,
    "layer normalisation, and weight matrices that keep their initial norms",
    network=normalized,
    configurations=("", "layer_norm=false", "normaliser_decay=0.01", "normaliser_decay=0.001"),
)
register("layer-norm", _nothing_else, "layer normalisation before every activation", network=layer_norm)
register(
    "leaky-relu",
    _nothing_else,
    "leaky ReLU in place of every activation",
    network=leaky_relu,
    configurations=("", "slope=0.05", "slope=0.1", "slope=0.3"),
)
register("crelu", _nothing_else, "[relu(z), relu(-z)] in narrower layers, as many parameters", network=crelu)
register(
    "plasticity-injection",
    plasticity_injection,
    "freeze the head half-way and add what a new one learns",
    configurations=("", "share=0.1", "share=0.25", "share=0.75"),
)
