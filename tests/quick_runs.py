"""Runs with the quick epoch and without it: listeners, loggers and weights must not be able to tell them apart."""

import random

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger
from avalanche.models import SimpleMLP
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn

from benchmarks.streams import make_stream
from plasticity.loading import TensorLoaderPlugin
from plasticity.loading.callbacks import EVENTS


def stream(sizes=(21, 30)):
    generator = torch.Generator().manual_seed(0)
    parts = [(torch.rand(size, 6, generator=generator), torch.arange(size) % 3) for size in sizes]
    return make_stream(parts, parts, "domain").streams["train"]


class Listener(SupervisedPlugin):
    """Notes every event of an iteration, with what can be seen of the strategy then."""

    def __init__(self):
        super().__init__()
        self.seen = []


def _note(event):
    def note(self, strategy, **kwargs):
        gradients = [None if p.grad is None else p.grad.sum().item() for p in strategy.model.parameters()]
        output = None if strategy.mb_output is None else torch.as_tensor(strategy.mb_output).sum().item()
        self.seen.append((event, strategy.clock.train_iterations, strategy.loss.item(), output, gradients, kwargs))

    return note


for _event in EVENTS:
    setattr(Listener, _event, _note(_event))


class Lines(BaseLogger):
    """Keeps every value, and when it came; listens to some events itself."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_single_metric(self, name, value, x_plot):
        self.lines.append((name, float(value), x_plot))

    def after_backward(self, strategy, values):
        self.lines.append(("after_backward", len(values), strategy.clock.train_iterations))


class Every(PluginMetric):
    """A metric of two events."""

    def before_update(self, strategy):
        return MetricValue(self, "before_update", float(strategy.loss), strategy.clock.train_iterations)

    def after_forward(self, strategy):
        return [MetricValue(self, "after_forward", 1.0, strategy.clock.train_iterations)]

    def reset(self):
        pass

    def result(self):
        pass


def train(
    quick,
    *,
    strategy=Naive,
    plugins=list,
    metrics=list,
    loggers=lambda: [Lines()],
    epochs=2,
    sizes=(21, 30),
    model=SimpleMLP,
):
    """Train with or without the plugin; returns the strategy, what a listener saw, what was logged, and the weights."""
    torch.manual_seed(5)
    random.seed(5)
    listener, loggers = Listener(), loggers()
    trained = strategy(
        model=model(num_classes=3, input_size=6, hidden_size=8, drop_rate=0.3),
        optimizer=None,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=epochs,
        plugins=[*([TensorLoaderPlugin()] if quick else []), *plugins(), listener],
        evaluator=EvaluationPlugin(*metrics(), loggers=loggers),
    )
    for experience in stream(sizes):
        trained.train(experience)
    lines = [line for logger in loggers for line in logger.lines]
    return trained, listener.seen, lines, [*trained.model.state_dict().values(), torch.get_rng_state()]


def with_optimizer(kind, **options):
    """Make a strategy's class with an optimizer for the model it gets."""

    def make(*, model, optimizer, criterion, evaluator, **shared):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        shared |= {"model": model, "optimizer": optimizer, "evaluator": evaluator, **options}
        return kind(criterion=criterion, **shared) if kind is not supervised.GDumb else kind(mem_size=12, **shared)

    return make


def assert_same(one, other):
    assert one[1] == other[1] and one[1]
    assert one[2] == other[2]
    assert len(one[3]) == len(other[3]) and all(torch.equal(a, b) for a, b in zip(one[3], other[3], strict=True))
