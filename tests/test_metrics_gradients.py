"""NotLearningUnits, the metric that watches no pass: against a plain loop over the gradients of a run."""

import copy
import pickle
import warnings

import pytest
import torch
from avalanche.evaluation.metric_definitions import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EWCPlugin, GEMPlugin, LwFPlugin, ReplayPlugin, SupervisedPlugin
from metric_cases import CLASSES, WIDTH, Growing, emitted, hooks, learn, mlp, naive, stream
from torch import nn

from plasticity import UserError
from plasticity.loading import TensorLoaderPlugin
from plasticity.loading.callbacks import EVENTS, acts, quiet
from plasticity.metrics import plasticity_metrics
from plasticity.metrics.measured import MEASURES

PLACE = "train_phase/train_stream/Task000"
ALONE = {"measures": ["NotLearningUnits"]}


class SlowGradients(SupervisedPlugin):
    """Notes which biases of the hidden layers have a gradient other than 0, one number after the other."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def before_training_epoch(self, strategy, **kwargs):
        self.epochs.append([])

    def before_update(self, strategy, **kwargs):
        assert hooks(strategy.model) == 0
        self.epochs[-1].append([[value == 0.0 for value in strategy.model[at].bias.grad.tolist()] for at in (0, 2)])

    def share(self, updates, layers=(0, 1)):
        always = [all(marks) for layer in layers for marks in zip(*(each[layer] for each in updates), strict=True)]
        return sum(always) / len(always)


@pytest.mark.parametrize(
    "others", [list, lambda: [ReplayPlugin(6)], lambda: [GEMPlugin(6, 0.5)], lambda: [LwFPlugin()]]
)
def test_values_equal_a_slow_loop(others):
    slow = SlowGradients()
    metrics = plasticity_metrics(minibatch=True, epoch=True, per_layer=True, **ALONE)
    strategy = naive(mlp(), metrics, plugins=[*others(), slow], rate=0.5)
    found = emitted(learn(strategy, stream()))
    for layer, layers in (("", (0, 1)), ("/0", (0,)), ("/2", (1,))):
        expected = [slow.share(updates, layers) for updates in slow.epochs]
        assert found[f"NotLearningUnits_Epoch/{PLACE}{layer}"][1] == pytest.approx(expected, abs=1e-12)
        expected = [slow.share([update], layers) for updates in slow.epochs for update in updates]
        assert found[f"NotLearningUnits_MB/{PLACE}{layer}"][1] == pytest.approx(expected, abs=1e-12)
    values = found[f"NotLearningUnits_Epoch/{PLACE}"][1]
    assert 0 < min(values) < 1 and all("_MB" in name or "_Epoch" in name for name in found)


def test_it_is_the_share_of_dead_units_of_a_relu_network():
    """Dead units in a mini-batch get no gradient from it, and here every other unit is read by something alive."""
    metrics = plasticity_metrics(minibatch=True, epoch=True, measures=["DeadUnits", "NotLearningUnits"])
    found = emitted(learn(naive(mlp(torch.float64), metrics), stream(dtype=torch.float64), evaluate=False))
    for granularity in ("MB", "Epoch"):
        dead = found[f"DeadUnits_{granularity}/{PLACE}"][1]
        assert found[f"NotLearningUnits_{granularity}/{PLACE}"][1] == dead and min(dead) > 0


def test_a_penalty_in_the_loss_is_a_gradient():
    """Weight decay in the loss moves dead units, too, and hides them."""
    plugins = [EWCPlugin(1.0)]
    found = emitted(learn(naive(mlp(), plasticity_metrics(epoch=True, **ALONE), plugins=plugins), stream(2)))
    assert found[f"NotLearningUnits_Epoch/{PLACE}"][1][0] > 0  # EWC weighs a dead unit by 0, and so leaves it at rest

    class Decay(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            strategy.loss = strategy.loss + sum(each.square().sum() for each in strategy.model.parameters())

    found = emitted(learn(naive(mlp(), plasticity_metrics(epoch=True, **ALONE), plugins=[Decay()]), stream(2)))
    assert set(found[f"NotLearningUnits_Epoch/{PLACE}"][1]) == {0.0}


def test_a_run_is_bit_identical_and_can_be_copied():
    results = []
    for metrics in ([], plasticity_metrics(minibatch=True, epoch=True, **ALONE)):
        strategy = learn(naive(copy.deepcopy(mlp()), metrics, plugins=[LwFPlugin()]), stream())
        results.append((strategy.model.state_dict(), torch.get_rng_state()))
        pickle.dumps(strategy.evaluator.metrics)
    assert all(torch.equal(value, results[1][0][name]) for name, value in results[0][0].items())
    assert torch.equal(results[0][1], results[1][1])


def test_a_model_that_grows_or_changes_within_an_epoch():
    found = emitted(learn(naive(Growing(), plasticity_metrics(epoch=True, **ALONE)), stream()))
    assert len(found[f"NotLearningUnits_Epoch/{PLACE}"][1]) == 6

    class Replace(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            if strategy.clock.train_iterations == 1:
                strategy.model[2], strategy.model[4] = nn.Linear(12, 9), nn.Linear(9, CLASSES)
                with torch.no_grad():
                    strategy.model[2].bias[:4] = -50.0
                    strategy.model[2].bias[4:] = 50.0
                strategy.optimizer.param_groups[0]["params"] = list(strategy.model.parameters())

    metrics = plasticity_metrics(epoch=True, per_layer=True, **ALONE)
    strategy = naive(mlp(), metrics, plugins=[Replace()], train_epochs=1)
    strategy.train(stream().train_stream[0])
    assert emitted(strategy)[f"NotLearningUnits_Epoch/{PLACE}/2"][1] == [4 / 9]


def test_what_cannot_be_read_is_said():
    def network(*biases):
        a, b = (nn.Linear(*size, bias=bias) for size, bias in zip(((WIDTH, 5), (5, 6)), biases, strict=True))
        return nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), nn.Linear(6, CLASSES))

    with pytest.warns(UserWarning, match=r"leaves out units whose gradients cannot be read \(0: `0` has no bias\)"):
        strategy = naive(network(False, True), plasticity_metrics(epoch=True, per_layer=True, **ALONE))
        strategy.train(stream().train_stream[0])
    assert set(emitted(strategy)) == {f"NotLearningUnits_Epoch/{PLACE}", f"NotLearningUnits_Epoch/{PLACE}/2"}
    with pytest.raises(UserError, match="the gradients of no units can be read"):
        naive(network(False, False), plasticity_metrics(epoch=True, **ALONE)).train(stream().train_stream[0])
    with pytest.raises(UserError, match="NotLearningUnits is emitted in training only"):
        plasticity_metrics(stream=True, **ALONE)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="NotLearningUnits")
        naive(network(True, True), plasticity_metrics(epoch=True, **ALONE)).train(stream().train_stream[0])


class Still(BaseLogger):
    """A logger that keeps nothing, and does nothing where there is nothing to log."""

    def log_single_metric(self, name, value, x_plot):
        pass


SETTINGS = [
    {"epoch": True},
    {"epoch": True, "every": 2},
    {"epoch": True, **ALONE},
    {"epoch": True, "measures": ["GradientNorm"]},
    {"epoch": True, "sample_plasticity": True},
    {"minibatch": True, "measures": ["WeightMagnitude"]},
    {"minibatch": True, "epoch": True, "measures": list(MEASURES)},
    {"epoch": True, "probe": torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0))},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_is_idle_only_where_nothing_would_be_done(settings):
    """A loop that passes over idle events finds what Avalanche's own finds, which calls at every event."""
    results = []
    for plugins in ([], [TensorLoaderPlugin()]):
        strategy = naive(mlp(), plasticity_metrics(**settings), plugins=plugins, loggers=[Still()])
        torch.manual_seed(0)
        for experience in stream().train_stream:
            strategy.train(experience, shuffle=False)
        results.append(emitted(strategy))
    assert results[0] == results[1] and len(results[0]) > 0


def test_a_watch_that_reports_epochs_is_called_twice_an_iteration_and_gradients_once():
    acting = [
        {event for event in EVENTS if acts(plasticity_metrics(epoch=True, **more)[0], event)} for more in ({}, ALONE)
    ]
    assert acting == [{"before_forward", "after_forward"}, {"before_update"}]


class Emits(PluginMetric):
    """A metric that is no part of this library, with a value for each forward pass."""

    def result(self):
        return None

    def reset(self):
        pass

    def after_forward(self, strategy):
        return [MetricValue(self, "Passes", float(len(strategy.mb_x)), strategy.clock.train_iterations)]


def test_the_evaluator_calls_where_another_metric_emits_and_when_it_is_switched_off_nobody_does():
    def metrics():
        return plasticity_metrics(epoch=True, measures=["DeadUnits", "NotLearningUnits"])

    told = {event: quiet(naive(mlp(), metrics(), loggers=[Still()]).evaluator, event) for event in EVENTS}
    assert {event for event, found in told.items() if found} == {"before_forward", "after_forward", "before_update"}
    told = {event: quiet(naive(mlp(), [*metrics(), Emits()], loggers=[Still()]).evaluator, event) for event in EVENTS}
    assert {event for event, found in told.items() if found is None} == {"after_forward"}
    results = []
    for plugins in ([], [TensorLoaderPlugin()]):
        strategy = naive(mlp(), [*metrics(), Emits()], plugins=plugins, loggers=[Still()])
        torch.manual_seed(0)
        strategy.train(stream().train_stream[0], shuffle=False)
        strategy.evaluator.active = False
        strategy.train(stream().train_stream[1], shuffle=False)
        results.append(emitted(strategy))
        assert len(results[-1]["Passes"][1]) == 6
    assert results[0] == results[1]
