"""Plasticity injection in Avalanche strategies, from end to end."""

import copy
import pickle

import dill
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, LwFPlugin, ReplayPlugin
from stripping_streams import OPTIMIZERS, FixedHead, MultiHead, Network, Recorder, everything, naive, run, same, stream
from torch import nn

from benchmarks.models import build_model
from plasticity.architecture import Injection, changes
from plasticity.architecture.rewriting import parameter_count
from plasticity.errors import UserError
from plasticity.metrics import plasticity_metrics
from plasticity.plugins import PlasticityInjectionPlugin, ReDoPlugin
from strategies import Context, build_plugins, change_network

MODELS = {"fixed": FixedHead, "growing": Network, "multi": MultiHead}


def injected(model):
    return [module for module in model.modules() if isinstance(module, Injection)]


def streams(model):
    return stream(task_labels=model is MultiHead)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_it_acts_once_without_changing_outputs_and_training_goes_on(model, optimizer):
    plugin = PlasticityInjectionPlugin(experience=2)
    strategy = run([plugin], model, streams(model), optimizer=optimizer)
    (entry,) = plugin.history
    assert (entry["experience"], entry["iteration"]) == (2, 12)
    assert entry["output_shift"] == 0.0 and entry["samples"] == 24
    assert entry["trained_parameters"] == changes(strategy.model)[0].parameters_before
    (added,) = injected(strategy.model)
    copies = [getattr(added, f"copy_{number}") for number in range(len(added._keys))]
    own = [tensor for _, _, tensor in added._own()]
    assert all(frozen.shape == live.shape for frozen, live in zip(copies, own, strict=True))
    assert not any(torch.equal(frozen, live) for frozen, live in zip(copies[:2], own[:2], strict=True))
    held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in strategy.model.parameters()} <= held
    assert parameter_count(strategy.model) == sum(p.numel() for p in strategy.model.parameters())


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_until_then_the_run_is_bit_identical_to_one_without_the_plugin(model):
    plugin = PlasticityInjectionPlugin(experience=3)
    with_plugin = run([plugin], model, streams(model))
    state = torch.get_rng_state()
    without = run([], model, streams(model))
    assert same(everything(with_plugin), everything(without)) and plugin.history == []
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("beside", [lambda: ReplayPlugin(8), lambda: EWCPlugin(1.0), LwFPlugin, ReDoPlugin])
def test_beside_other_plugins_the_same_seed_gives_the_same_run(model, beside):
    runs = []
    for seed in (0, 0, 1):
        plugin = PlasticityInjectionPlugin(seed=seed)
        runs.append(everything(run([beside(), plugin], model, streams(model), evaluate=True)))
        assert len(plugin.history) == 1
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])
    assert all(torch.isfinite(tensor).all() for tensor in runs[0])


def test_metrics_beside_it_count_the_units_of_the_new_part_only():
    recorder, plugin = Recorder(), PlasticityInjectionPlugin()
    torch.manual_seed(0)
    strategy = naive(Network(), [plugin])
    strategy.evaluator = strategy.plugins[-2] = EvaluationPlugin(plasticity_metrics(epoch=True), loggers=[recorder])
    assert isinstance(strategy.plugins[0], PlasticityInjectionPlugin)
    for experience in stream().train_stream:
        strategy.train(experience)
    names = {value.name for value in recorder.values}
    assert any("DeadUnits" in name for name in names) and not any("#" in name for name in names)
    assert len(plugin.history) == 1


def test_state_and_checkpoints():
    plugin = PlasticityInjectionPlugin()
    run([plugin], Network, list(stream().train_stream)[:2])
    again = PlasticityInjectionPlugin()
    again.load_state_dict(copy.deepcopy(plugin.state_dict()))
    assert again.history == plugin.history and len(again.history) == 1

    results = []
    for restored in (False, True):
        strategy = run([PlasticityInjectionPlugin()], Network, list(stream().train_stream)[:2])
        if restored:
            strategy.plugins[0] = dill.loads(dill.dumps(strategy.plugins[0]))
            strategy.model, strategy.optimizer = pickle.loads(pickle.dumps((strategy.model, strategy.optimizer)))
            strategy.optimized_param_id = dict(strategy.model.named_parameters())
        torch.manual_seed(5)
        strategy.train(list(stream().train_stream)[2])
        results.append(everything(strategy))
        assert len(strategy.plugins[0].history) == 1
    assert same(*results)


def test_arguments_and_heads_that_cannot_be_told_are_refused_in_words():
    for experience in (0, -1, 1.5, True):
        with pytest.raises(UserError, match="experience must be a whole number of at least 1"):
            PlasticityInjectionPlugin(experience)

    class FunctionalHead(Network):
        def forward(self, x):
            return self.classifier(self.features(x) * 1.0)

    with pytest.raises(UserError, match="no head with a hidden layer was found"):
        run([PlasticityInjectionPlugin()], FunctionalHead)
    plugin = PlasticityInjectionPlugin(head=("classifier",))
    run([plugin], FunctionalHead)
    assert len(plugin.history) == 1


@pytest.mark.parametrize("scenario", ["one head", "heads"])
def test_the_strategies_of_another_network_combine(scenario):
    heads = scenario == "heads"
    combined = "crelu+layer-norm+replay+plasticity-injection"
    torch.manual_seed(0)
    model, x = build_model("mlp-3x128", 6, (8,), heads), torch.rand(4, 8)
    model = change_network(combined, model, (x, torch.zeros(4, dtype=torch.int64)) if heads else (x,))
    assert [change.name for change in changes(model)] == ["crelu", "layer-norm"]
    plugins = build_plugins(combined, Context(lambda: nn.Identity(), 0, 1, 8, 3))
    assert plugins[-1].experience == 1
    strategy = naive(model, plugins)
    for experience in stream(task_labels=heads).train_stream:
        strategy.train(experience)
    assert [change.name for change in changes(strategy.model)] == ["crelu", "layer-norm", "plasticity-injection"]
