"""Every plugin with settings with which it acts at once, and runs in which nothing else changes weights."""

import copy

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from stripping_streams import FixedHead, Recorder, stream

from plasticity import plugins

EXPERIENCES = stream()
LAYERS = ("features.0", "features.3", "classifier")
MAKE = {
    "AdaptivePlugin": lambda **more: plugins.AdaptivePlugin(dead=0.01, growth=1.0, **more),
    "AdaptivePlugin, units": lambda **more: plugins.AdaptivePlugin(dead=0.01, growth=None, **more),
    "ContinualBackpropPlugin": lambda **more: plugins.ContinualBackpropPlugin(
        replacement_rate=0.1, maturity=1, transfer=True, **more
    ),
    "DASHPlugin": plugins.DASHPlugin,
    "DemonPruningPlugin": lambda **more: plugins.DemonPruningPlugin(
        regularisation=0.1, noise_std=0.01, gate="none", **more
    ),
    "DemonPruningPlugin, shrink": lambda **more: plugins.DemonPruningPlugin("shrink", gate="none", **more),
    "FIREPlugin": plugins.FIREPlugin,
    "GradientDormancyPlugin": lambda **more: plugins.GradientDormancyPlugin(every=2, batches=2, tau=0.5, **more),
    "HareTortoisePlugin": lambda **more: plugins.HareTortoisePlugin(reset_every=2, optimizer_state="clear", **more),
    "HyperHypoPlugin": lambda **more: plugins.HyperHypoPlugin(percent=20, **more),
    "HyperHypoPlugin, prune": lambda **more: plugins.HyperHypoPlugin("prune", percent=20, **more),
    "L2InitPlugin": lambda **more: plugins.L2InitPlugin(0.5, **more),
    "L2Plugin": lambda **more: plugins.L2Plugin(0.5, **more),
    "NormalizeAndProjectPlugin": lambda **more: plugins.NormalizeAndProjectPlugin(normaliser_decay=0.1, **more),
    "PlasticityInjectionPlugin": plugins.PlasticityInjectionPlugin,
    "ReDoPlugin": lambda **more: plugins.ReDoPlugin(every=2, tau=0.5, **more),
    "SelfNormalizedResetsPlugin": lambda **more: plugins.SelfNormalizedResetsPlugin(
        maximum_age=3, check_every=1, maximum_share=1, **more
    ),
    "ShrinkPerturbPlugin": plugins.ShrinkPerturbPlugin,
    "ShrinkPerturbPlugin, step": lambda **more: plugins.ShrinkPerturbPlugin("step", noise=0.5, **more),
    "ShrinkPerturbPlugin, interpolate": lambda **more: plugins.ShrinkPerturbPlugin("interpolate", **more),
    "SpectralRegularizationPlugin": lambda **more: plugins.SpectralRegularizationPlugin(0.5, **more),
    "SynapticStrippingPlugin": plugins.SynapticStrippingPlugin,
    "SynapticStrippingPlugin, new": lambda **more: plugins.SynapticStrippingPlugin(
        fallback="reinitialise", fraction=0.5, max_row_sparsity=0.2, **more
    ),
}
"""Every plugin, as it may be set."""


def flat(output, labels):
    """A loss that teaches nothing: whatever changes in training, a plugin has changed."""
    return 0 * output.sum()


def trained(plugin, model=FixedHead, criterion=flat, rate=0.01, moved=True, optimizer=None, beside=()):
    """Train on two experiences; returns the strategy.

    Args:
        plugin: The plugin; None: none.
        model: Makes the network.
        criterion: The loss.
        rate: The learning rate.
        moved: Whether each parameter is moved away from its initial value after the first experience.
        optimizer: Makes the optimizer of a network; None: Adam with one group.
        beside: Makes further plugins from the optimizer, which come after the other one.
    """
    torch.manual_seed(0)
    network = model()
    made = optimizer(network) if optimizer else torch.optim.Adam(network.parameters(), lr=rate)
    strategy = Naive(
        model=network,
        optimizer=made,
        criterion=criterion,
        train_mb_size=8,
        plugins=[*([plugin] if plugin is not None else []), *(make(made) for make in beside)],
        evaluator=EvaluationPlugin(loggers=[Recorder()]),
    )
    torch.manual_seed(1)
    for number, experience in enumerate(EXPERIENCES.train_stream[:2]):
        strategy.train(experience)
        if number == 0 and moved:
            with torch.no_grad():
                for parameter in strategy.model.parameters():
                    parameter.mul_(1.5)
    return strategy


def of_layer(strategy, name):
    """Copies of a layer's parameters, and of the optimizer's state of them."""
    found = {}
    for key, parameter in strategy.model.get_submodule(name).named_parameters():
        state = strategy.optimizer.state.get(parameter, {})
        found |= {key: parameter.detach().clone()} | {f"{key} {part}": copy.copy(each) for part, each in state.items()}
    return found


def equal(one, other):
    """Whether two layers hold the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
