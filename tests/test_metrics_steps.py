"""Sample plasticity as a metric: what every step takes away from the loss of its own mini-batch."""

import copy

import pytest
import torch
from avalanche.training.plugins import EWCPlugin, ReplayPlugin, SupervisedPlugin
from metric_cases import CLASSES, EVERY, WIDTH, emitted, learn, mlp, naive, stream
from torch import nn

from plasticity.metrics import plasticity_metrics

PLACE = "train_phase/train_stream/Task000"


class SlowSteps(SupervisedPlugin):
    """Copies the model before every update, and compares losses afterwards, dropout off and one sample at a time."""

    def __init__(self):
        super().__init__()
        self.shares = []

    def _loss(self, strategy, model):
        criterion = nn.CrossEntropyLoss(reduction="none")
        with torch.no_grad():
            losses = [
                float(criterion(model(x[None]), y[None])) for x, y in zip(strategy.mb_x, strategy.mb_y, strict=True)
            ]
        return sum(losses) / len(losses)

    def before_update(self, strategy, **kwargs):
        self.before = self._loss(strategy, copy.deepcopy(strategy.model))

    def after_update(self, strategy, **kwargs):
        self.shares.append(max(1 - self._loss(strategy, strategy.model) / self.before, 0.0))


@pytest.mark.parametrize("others", [list, lambda: [ReplayPlugin(6)], lambda: [EWCPlugin(10.0)]])
def test_values_equal_a_slow_loop(others):
    slow = SlowSteps()
    metrics = plasticity_metrics(minibatch=True, epoch=True, measures=["SamplePlasticity"])
    strategy = naive(mlp(torch.float64), metrics, plugins=[*others(), slow], rate=0.5)
    found = emitted(learn(strategy, stream(dtype=torch.float64)))
    assert list(found) == [f"SamplePlasticity_{granularity}/{PLACE}" for granularity in ("MB", "Epoch")]
    xs, values = found[f"SamplePlasticity_MB/{PLACE}"]
    assert values == pytest.approx(slow.shares, abs=1e-9)
    assert min(values) == 0 < max(values) < 1  # such large steps overshoot at times
    steps = iter(slow.shares)
    previous = 0
    for x, value in zip(*found[f"SamplePlasticity_Epoch/{PLACE}"], strict=True):
        epoch = [next(steps) for _ in range(x - previous)]
        assert value == pytest.approx(sum(epoch) / len(epoch), abs=1e-9)
        previous = x
    assert next(steps, None) is None


def test_a_step_of_no_length_takes_nothing_away_under_dropout_and_normalisation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, CLASSES))
    metrics = plasticity_metrics(minibatch=True, sample_plasticity=True, measures="DeadUnits")
    found = emitted(learn(naive(model, metrics, rate=0.0), stream(1)))
    assert set(found[f"SamplePlasticity_MB/{PLACE}"][1]) == {0.0}  # the same units were dropped
    assert f"DeadUnits_MB/{PLACE}" in found


def test_measuring_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, CLASSES))
    results = []
    for metrics in ([], plasticity_metrics(**EVERY, sample_plasticity=True)):
        strategy = learn(naive(copy.deepcopy(model), metrics), stream())
        results.append((strategy.model.state_dict(), torch.get_rng_state()))
    assert all(torch.equal(value, results[1][0][name]) for name, value in results[0][0].items())
    assert torch.equal(results[0][1], results[1][1])


def test_the_option_names_it_once_and_the_default_does_not():
    (metric,) = plasticity_metrics(epoch=True, sample_plasticity=True, measures=["SamplePlasticity"])
    assert metric.settings.measures == ("SamplePlasticity",)
    (metric,) = plasticity_metrics(epoch=True)
    assert "SamplePlasticity" not in metric.settings.measures
