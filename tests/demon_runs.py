"""Runs of demon pruning in Avalanche strategies, and what must hold in each."""

import pytest
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from plasticity.plugins import DemonPruningPlugin

STRONG = {"regularisation": 0.05, "noise_std": 1e-3}
MODES = pytest.mark.parametrize("mode", ["mask", "shrink"])


def demon(mode="mask", **changes):
    return DemonPruningPlugin(mode, **{**STRONG, **changes})


def pruned(plugin):
    return sum(len(numbers) for entry in plugin.history for numbers in entry["units"].values())


def widths(strategy):
    return [len(m.weight) for m in strategy.model.features if isinstance(m, nn.Linear)]


def check_bookkeeping(strategy):
    """The optimizer owns the model's parameters, with state of their shapes, and Avalanche knows them by name."""
    owned = [p for group in strategy.optimizer.param_groups for p in group["params"]]
    parameters = dict(strategy.model.named_parameters())
    assert {id(p) for p in owned} == {id(p) for p in parameters.values()}
    assert {name: id(p) for name, p in strategy.optimized_param_id.items()} == {n: id(p) for n, p in parameters.items()}
    for parameter in owned:
        for key, value in strategy.optimizer.state.get(parameter, {}).items():
            assert key == "step" or value is None or value.shape == parameter.shape


class Bookkeeping(SupervisedPlugin):
    """Checks after every step."""

    checks = 0

    def after_training_iteration(self, strategy, **kwargs):
        check_bookkeeping(strategy)
        self.checks += 1
