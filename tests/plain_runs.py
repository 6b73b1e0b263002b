"""A run by hand: Avalanche's own loop on the stream and the network that a run of these settings has."""

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from benchmarks import training
from benchmarks.models import build_model
from benchmarks.streams import get_benchmark, stream_shape


def plain_run(settings, plugins=(), evaluator=None):
    """Return the stream of a naive run, and the strategy that is to train on it."""
    stream = get_benchmark(settings.benchmark).build(settings.stream)
    training._seed(settings.seed)
    model = build_model(settings.model, *stream_shape(stream, settings.stream))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=settings.batch_size,
        train_epochs=settings.epochs,
        evaluator=EvaluationPlugin(loggers=[]) if evaluator is None else evaluator,
        plugins=list(plugins),
    )
    return stream, strategy
