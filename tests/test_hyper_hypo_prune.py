"""Pruning of hyper- and hypo-units in Avalanche's Naive: silent for good, never too many."""

import copy

import pytest
import torch
from avalanche.models import avalanche_forward
from avalanche.training.plugins import SupervisedPlugin
from hyper_hypo_runs import (
    NETWORKS,
    run,
)

from plasticity.plugins import HyperHypoPlugin


class Silent(SupervisedPlugin):
    """Checks after every update that what was pruned is silent: its incoming weights make no difference at all."""

    def __init__(self, plugin: HyperHypoPlugin) -> None:
        super().__init__()
        self.plugin, self.checked, self.earlier = plugin, 0, {}

    def before_training_exp(self, strategy, **kwargs) -> None:
        for name, mask in self.earlier.items():
            assert bool(self.plugin.pruned[name][mask].all())
        self.earlier = {name: mask.clone() for name, mask in self.plugin.pruned.items()}

    def after_update(self, strategy, **kwargs) -> None:
        if not self.plugin.pruned:
            return
        model = copy.deepcopy(strategy.model).eval()
        before = avalanche_forward(model, strategy.mb_x, strategy.mb_task_id)
        for name, mask in self.plugin.pruned.items():
            with torch.no_grad():
                model.get_submodule(name).weight[mask] = 7
        assert torch.equal(before, avalanche_forward(model, strategy.mb_x, strategy.mb_task_id))
        self.checked += 1


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("network", NETWORKS)
def test_pruned_units_are_silent_for_good(network: str, kind: str) -> None:
    plugin = HyperHypoPlugin("prune", percent=10)
    silent = Silent(plugin)
    strategy = run(network, [plugin, silent], epochs=2, kind=kind)
    assert silent.checked == 12
    assert [entry["pruned"] for entry in plugin.history] == [entry["selected"] for entry in plugin.history]
    assert plugin.history[-1]["pruned_in_all"] == sum(entry["pruned"] for entry in plugin.history) > 0
    assert all(entry["output_shift"] > 0 and entry["skipped"] == entry["spared"] == 0 for entry in plugin.history)
    first, second = (entry["units"] for entry in plugin.history)
    assert all(not set(first[name]) & set(second[name]) for name in first)
    state = strategy.optimizer.state
    for name in plugin.masks:
        weight = strategy.model.get_submodule(name).weight
        removed = ~plugin.masks.kept(strategy.model, name)
        assert bool(removed.any()) and bool((weight[removed] == 0).all())
        for value in state.get(weight, {}).values():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                assert bool((value[removed] == 0).all())


def test_pruned_units_stay_silent_whatever_other_plugins_do_to_weights() -> None:
    class Shake(SupervisedPlugin):
        def after_update(self, strategy, **kwargs) -> None:
            with torch.no_grad():
                for parameter in strategy.model.parameters():
                    parameter += 0.01

    plugin = HyperHypoPlugin("prune", percent=10)
    silent = Silent(plugin)
    run("mlp", [Shake(), plugin, silent], experiences=2, epochs=1)
    assert silent.checked == 3


def test_a_head_that_grows_or_is_added_does_not_hear_pruned_units() -> None:
    growing_plugin, heads_plugin = (HyperHypoPlugin("prune", percent=10) for _ in range(2))
    grown = run("growing", [growing_plugin], epochs=1)
    assert grown.model[3].classifier.weight.shape == (6, 20)
    assert bool((grown.model[3].classifier.weight[:, growing_plugin.pruned["0"]] == 0).all())
    heads = run("multi_head", [heads_plugin], epochs=1).model.classifier.classifiers
    assert len(heads) == 3
    for head in heads.values():
        assert bool((head.classifier.weight[:, heads_plugin.pruned["features.0"]] == 0).all())


def test_a_long_stream_does_not_use_a_layer_up() -> None:
    plugin = HyperHypoPlugin("prune", percent=20, maximum_pruned=0.5)
    run("mlp", [plugin], experiences=6, epochs=1)
    assert {name: int(mask.sum()) for name, mask in plugin.pruned.items()} == {"0": 10, "3": 6}
    assert plugin.history[-1]["pruned"] == 0 and plugin.history[-1]["spared"] == plugin.history[-1]["selected"] > 0
    everything_goes = HyperHypoPlugin("prune", percent=50, maximum_pruned=1)
    run("mlp", [everything_goes], experiences=6, epochs=1)
    assert {name: int(mask.sum()) for name, mask in everything_goes.pruned.items()} == {"0": 19, "3": 11}
