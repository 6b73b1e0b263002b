"""Streams, models and plain references that the tests of the metrics share."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets, dataset_benchmark, nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, _make_taskaware_classification_dataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import TensorDataset

from plasticity.metrics import PlasticityMetrics

WIDTH, CLASSES = 8, 6
EVERY = {"minibatch": True, "epoch": True, "experience": True, "stream": True}


class Samples(TensorDataset):
    """Random inputs of balanced classes, with the targets that Avalanche asks for."""

    def __init__(self, size: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
        inputs = torch.randn(size, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(seed))
        labels = torch.arange(size) % CLASSES
        super().__init__(inputs, labels)
        self.targets = labels.tolist()


def stream(experiences: int = 3, *, task_labels: bool = False, train: int = 60, test: int = 30, **dtype: Any) -> Any:
    """Two classes an experience, 20 training and 10 test samples each by default."""
    return nc_benchmark(
        Samples(train, 0, **dtype), Samples(test, 1, **dtype), experiences, task_labels=task_labels, shuffle=False
    )


def unlabelled_stream(experiences: int = 2) -> Any:
    """Experiences that carry no task labels at all."""

    def dataset(seed: int) -> Any:
        samples = Samples(12, seed)
        return AvalancheDataset([samples], data_attributes=[DataAttribute(samples.targets, "targets")])

    return benchmark_from_datasets(
        train=[dataset(number) for number in range(experiences)],
        test=[dataset(number + experiences) for number in range(experiences)],
    )


def mixed_stream() -> Any:
    """One experience whose samples belong to two tasks."""
    data = _make_taskaware_classification_dataset(Samples(12, 0), task_labels=[0] * 6 + [1] * 6)
    return dataset_benchmark([data], [data])


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Two hidden layers with dead, dormant and over-active units in the first."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, CLASSES, dtype=dtype)
    ).to(dtype)
    with torch.no_grad():
        model[0].bias[:3] = -50.0  # dead
        model[0].weight[3] *= 1e-4  # dormant
        model[0].bias[3] = 0.0
        model[0].bias[4:6] = 4.0  # fires always
    return model


def naive(
    model: nn.Module, metrics: Any, *, plugins: Any = (), loggers: Any = (), rate: float = 0.05, **more: Any
) -> Any:
    """A Naive strategy of 2 epochs of batches of 8, which the experiences do not fill."""
    settings: dict[str, Any] = {"train_mb_size": 8, "train_epochs": 2, "eval_mb_size": 4, **more}
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=rate),
        criterion=nn.CrossEntropyLoss(),
        plugins=list(plugins),
        evaluator=EvaluationPlugin(metrics, loggers=list(loggers) or [Silent()]),
        **settings,
    )


class Silent:
    """A logger that says nothing; without any, Avalanche warns."""

    def log_metrics(self, values: Any) -> None:
        """Take the values."""


class Recorder(SupervisedPlugin):
    """Notes the inputs and the parameters of every training and evaluation forward pass, by epoch and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[list[tuple[Any, Any]]] = []
        self.evaluations: list[list[list[tuple[Any, Any]]]] = []
        self.updates: list[list[dict[str, Any]]] = []

    def _pass(self, strategy: Any) -> tuple[Any, Any]:
        return strategy.mb_x.clone().numpy(), parameters(strategy.model)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.epochs.append([])
        self.updates.append([])

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.epochs[-1].append(self._pass(strategy))

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self.updates[-1].append({name: p.grad.clone().numpy() for name, p in strategy.model.named_parameters()})

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.evaluations.append([])

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.evaluations[-1].append([])

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.evaluations[-1][-1].append(self._pass(strategy))


def parameters(model: nn.Module) -> dict[str, Any]:
    """The parameters as numpy arrays of their own."""
    return {name: parameter.detach().clone().numpy() for name, parameter in model.named_parameters()}


def hidden(passes: Any) -> dict[str, Any]:
    """Activations of the two hidden layers of `mlp` over some passes, by layer, in numpy."""
    found: dict[str, list[Any]] = {"0": [], "2": []}
    for inputs, weights in passes:
        h = inputs
        for name, each in found.items():
            h = np.maximum(h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"], 0)
            each.append(h)
    return {name: np.concatenate(each) for name, each in found.items()}


def unit_shares(layers: dict[str, Any], tau: float = 0.025, bound: float = 0.95) -> dict[str, float]:
    """Dead, dormant and over-active shares, by measure or "measure/layer", unit by unit."""
    counts: dict[str, list[bool]] = {}
    for layer, h in layers.items():
        means = [math.fsum(column) / len(column) for column in h.T.tolist()]
        average = math.fsum(means) / len(means)
        for unit, mean in enumerate(means):
            fired = sum(value > 0 for value in h[:, unit].tolist())
            for measure, mark in {
                "DeadUnits": mean == 0,
                "DormantUnits": mean <= tau * average,
                "OverActiveUnits": fired >= bound * len(h),
            }.items():
                counts.setdefault(measure, []).append(mark)
                counts.setdefault(f"{measure}/{layer}", []).append(mark)
    return {name: sum(marks) / len(marks) for name, marks in counts.items()}


def effective_rank(features: Any) -> float:
    """exp of the entropy of the normalised singular values."""
    values = np.linalg.svd(features, compute_uv=False)
    shares = [float(value / values.sum()) for value in values if value > 0]
    return math.exp(-math.fsum(share * math.log(share) for share in shares))


def emitted(strategy: Any) -> dict[str, tuple[list[int], list[Any]]]:
    """Every metric: its x and its values."""
    return dict(strategy.evaluator.get_all_metrics())


class Growing(nn.Module):
    """A classifier that grows by two classes an experience."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(WIDTH, 5), nn.ReLU())
        self.classifier = IncrementalClassifier(5, initial_out_features=2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.classifier(self.features(x))


def observations(monkeypatch: Any) -> dict[str, list[dict[str, int]]]:
    """Note how often each group was observed at every emission, by granularity."""
    found: dict[str, list[dict[str, int]]] = {"MB": [], "Epoch": [], "Exp": [], "Stream": []}
    emit = PlasticityMetrics._emit

    def spy(self: Any, strategy: Any, granularity: str, seen: Any) -> Any:
        found[granularity].append({name: each.count for name, each in seen.units.statistics.items()})
        return emit(self, strategy, granularity, seen)

    monkeypatch.setattr(PlasticityMetrics, "_emit", spy)
    return found


def hooks(model: nn.Module) -> int:
    """How many hooks a model carries, and modules that something stands in for."""
    stands = sum("_compiled_call_impl" in vars(m) for m in model.modules())
    return stands + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def learn(strategy: Any, benchmark: Any, evaluate: bool = True) -> Any:
    """Train on a stream, from a fixed random state; no hook may be left at any time."""
    torch.manual_seed(5)
    random.seed(5)  # A-GEM chooses its memory by it
    for experience in benchmark.train_stream:
        strategy.train(experience)
        assert hooks(strategy.model) == 0
        if evaluate:
            strategy.eval(benchmark.test_stream)
            assert hooks(strategy.model) == 0
    return strategy
