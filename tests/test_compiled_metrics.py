"""What metrics tell of compiled networks is what they tell of others, from within the compiled graphs."""

import copy
import warnings

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from compiled_networks import FORMS, fresh_compiler
from metric_cases import Growing, emitted, hooks, mlp, naive, stream

from plasticity.metrics import plasticity_metrics
from plasticity.plugins import ContinualBackpropPlugin, ReDoPlugin

MEASURES = ["DeadUnits", "DormantUnits", "OverActiveUnits", "NonFiniteUnits", "EffectiveRank", "StableRank"]


@pytest.fixture(autouse=True)
def compiler():
    yield from fresh_compiler()


class Passes(SupervisedPlugin):
    """Notes of each pass whether it is one of training, how many samples it has, and how many weights the network."""

    def __init__(self):
        super().__init__()
        self.kinds = []

    def before_forward(self, strategy, **kwargs):
        weights = sum(parameter.numel() for parameter in strategy.model.parameters())
        self.kinds.append((strategy.model.training, len(strategy.mb_x), weights))

    before_eval_forward = before_forward

    @property
    def evaluations(self):
        return sum(not training for training, _, _ in self.kinds)


def run(model, plugins=(), **asked):
    """Learn and be evaluated; return what was emitted, and the warnings."""
    asked = {"measures": MEASURES, "features": 25, "per_layer": True, **asked}
    metrics = plasticity_metrics(minibatch=True, epoch=True, experience=True, stream=True, **asked)
    strategy = naive(model, metrics, plugins=plugins)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        left = hooks(model)  # among them what the model is compiled to
        torch.manual_seed(5)
        benchmark = stream(2, train=20, test=8)
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
            assert hooks(model) == left
    return emitted(strategy), [str(each.message) for each in caught if "uncompiled" in str(each.message)]


def same(found, expected):
    assert set(found) == set(expected)
    for name, (iterations, values) in expected.items():
        assert found[name][0] == iterations
        assert found[name][1] == (values if "Units" in name else pytest.approx(values, rel=1e-5))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", [mlp, Growing])
def test_metrics_of_compiled_networks(build, form, compiler):
    torch.manual_seed(0)
    model = build()
    expected, _ = run(copy.deepcopy(model))
    found, said = run(FORMS[form](model, backend=compiler, dynamic=False), [passes := Passes()])
    same(found, expected)
    assert not said and compiler.runs == len(passes.kinds) > 10
    assert compiler.graphs == len(set(passes.kinds))


@pytest.mark.parametrize("plugin", [ReDoPlugin, ContinualBackpropPlugin])
def test_beside_methods(plugin, compiler):
    """Where a method watches every training pass, too, these run uncompiled, and both see them."""
    model = mlp()
    expected, _ = run(copy.deepcopy(model), [plugin()])
    model.compile(backend=compiler)
    found, said = run(model, [plugin(), passes := Passes()])
    same(found, expected)
    assert not said
    assert compiler.runs == (passes.evaluations if plugin is ContinualBackpropPlugin else len(passes.kinds))


def test_passes_that_are_left_out_run_in_graphs_of_their_own(compiler):
    model = mlp()
    expected, _ = run(copy.deepcopy(model), every=3)
    model.compile(backend=compiler)
    found, said = run(model, [passes := Passes()], every=3)
    same(found, expected)
    epochs = 4  # of which the first pass of each is watched
    assert not said and compiler.runs == len(passes.kinds) - epochs


def test_a_reason_is_said(compiler):
    class Counting(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x + 1 if x.sum().item() > 1e9 else x)

    model = Counting(*mlp())
    expected, _ = run(copy.deepcopy(model))
    model.compile(backend=compiler)
    found, said = run(model)
    same(found, expected)
    assert said and all("data-dependent" in each for each in said)
