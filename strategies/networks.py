"""Strategies that are another optimizer or another network."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from strategies.registry import Context, register

if TYPE_CHECKING:
    from avalanche.training.plugins import SupervisedPlugin


def _nothing_else(context: Context) -> "list[SupervisedPlugin[Any]]":
    return []


def upgd(parameters: list[nn.Parameter], learning_rate: float) -> Optimizer:
    """UPGD, which steps as plain gradient descent does: at ten times the rate, since benchmarks' rates suit Adam."""
    from plasticity.optim import UPGD

    return UPGD(parameters, lr=10 * learning_rate, seed=torch.initial_seed() % 2**63)


register("upgd", _nothing_else, "the optimizer UPGD: protect useful weights and perturb the others", optimizer=upgd)


def layer_norm(network: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    """Put a normaliser before every activation (arXiv 2402.18762)."""
    from plasticity.architecture import with_layer_norm

    return with_layer_norm(network, example)


def leaky_relu(network: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    """Leaky ReLU of slope 0.01 at all hidden units."""
    from plasticity.architecture import with_activation

    return with_activation(network, example, "leaky_relu")


def crelu(network: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    """Concatenated ReLU in narrower layers (arXiv 2303.07507)."""
    from plasticity.architecture import with_crelu

    return with_crelu(network, example)


register("layer-norm", _nothing_else, "layer normalisation before every activation", network=layer_norm)
register("leaky-relu", _nothing_else, "leaky ReLU in place of every activation", network=leaky_relu)
register("crelu", _nothing_else, "[relu(z), relu(-z)] in narrower layers, as many parameters", network=crelu)


def plasticity_injection(context: Context) -> "list[SupervisedPlugin[Any]]":
    """A new head in the middle of the stream, with the old one frozen (arXiv 2305.15555)."""
    from plasticity.plugins import PlasticityInjectionPlugin

    return [PlasticityInjectionPlugin(max(1, context.experiences // 2), seed=context.seed)]


register("plasticity-injection", plasticity_injection, "freeze the head half-way and add what a new one learns")
