"""Gradient norms that runs note, against a plain loop."""

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from plain_runs import plain_run
from torch import nn

from benchmarks import gradient_norms
from benchmarks.gradient_norms import GradientNormPlugin
from benchmarks.observing import Stopwatch
from benchmarks.settings import resolve
from benchmarks.training import train
from plasticity import measures


class Slow(SupervisedPlugin):
    """The norm of every gradient, entry by entry."""

    def __init__(self):
        super().__init__()
        self.norms = []

    def before_update(self, strategy, **kwargs):
        entries = [entry for p in strategy.model.parameters() for entry in p.grad.flatten().tolist()]
        self.norms.append(sum(entry * entry for entry in entries) ** 0.5)


def test_norms_and_weights_of_a_run_equal_a_loop(tmp_path):
    settings = resolve("permuted-digits", "naive", 0, experiences=2, epochs=1)
    found = train(settings, tmp_path / "metrics.jsonl")
    slow = Slow()
    stream, strategy = plain_run(settings, [slow])
    for entry, experience in zip(found["units"], stream.train_stream, strict=True):
        slow.norms = []
        strategy.train(experience)
        chosen = slow.norms[:: gradient_norms.EVERY]
        assert len(chosen) > 3 and entry["gradient_norm"] == pytest.approx(sum(chosen) / len(chosen), rel=1e-4)
        assert entry["weight_magnitude"] == pytest.approx(float(measures.weight_magnitude(strategy.model)))
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert "GradientNorm_Exp/eval_phase/train_stream/Exp001" in lines and "WeightMagnitude_Exp" in lines


def test_a_gradient_that_is_not_finite_is_no_number_and_the_watch_stands_still():
    stopwatch = Stopwatch(torch.device("cpu"))
    plugin = GradientNormPlugin(stopwatch)
    model = nn.Linear(2, 2)
    strategy = Naive(model=model, optimizer=None, criterion=None, evaluator=EvaluationPlugin(loggers=[]))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    plugin.before_update(strategy)
    assert stopwatch.seconds < 0 and plugin.take() is None and plugin.take() is None


def test_it_goes_on_from_its_state():
    def looked(interrupted):
        plugin = GradientNormPlugin(Stopwatch(torch.device("cpu")))
        model = nn.Linear(2, 2)
        strategy = Naive(model=model, optimizer=None, criterion=None, evaluator=EvaluationPlugin(loggers=[]))
        for step in range(25):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, float(step))
            plugin.before_update(strategy)
            if interrupted and step == 13:
                state, plugin = plugin.state_dict(), GradientNormPlugin(Stopwatch(torch.device("cpu")))
                plugin.load_state_dict(state)
        return plugin.take()

    assert looked(False) == looked(True) == pytest.approx((0 + 10 + 20) / 3 * 6**0.5)
