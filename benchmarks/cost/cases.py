"""The networks and mini-batches on which costs are measured; the data are random, for costs do not depend on them."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from avalanche.logging import BaseLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn

from benchmarks.computing import Computing
from benchmarks.cost.timing import clock
from benchmarks.models import build_model
from benchmarks.streams import make_stream
from plasticity.loading import TensorLoaderPlugin


@dataclass(frozen=True)
class Case:
    """A network, its mini-batches and its optimizer.

    Args:
        name: As in the table.
        model: A name in `benchmarks.models`.
        shape: Of one sample.
        batch_size: Samples of a mini-batch.
        optimizer: Makes the optimizer.
        steps: Mini-batches of a block.
        classes: Width of the head.
        computing: How the network computes.
    """

    name: str
    model: str
    shape: tuple[int, ...]
    batch_size: int
    optimizer: Callable[..., torch.optim.Optimizer]
    steps: int
    classes: int = 10
    computing: Computing = Computing()


CASES = (
    Case("slim-resnet18, batch 64", "slim-resnet18", (3, 32, 32), 64, partial(torch.optim.SGD, lr=0.03), 8),
    Case("pairs-conv, batch 32", "pairs-conv", (3, 32, 32), 32, partial(torch.optim.Adam, lr=1e-3, fused=True), 60),
    Case("mlp-3x1000, batch 64", "mlp-3x1000", (784,), 64, partial(torch.optim.Adam, lr=1e-3, fused=True), 30),
)


def of_networks(cases: Iterable[Case], networks: Collection[str]) -> tuple[Case, ...]:
    """Return the cases of some networks, by their names in `benchmarks.models`; none: all."""
    return tuple(case for case in cases if not networks or case.model in networks)


def computed(cases: Iterable[Case], computing: Computing) -> tuple[Case, ...]:
    """Return the cases with networks that compute in another way."""
    return tuple(replace(case, computing=computing) for case in cases)


class StepTimer(SupervisedPlugin[Any]):
    """Times the iterations of an experience, all but the first few, in which networks are looked at.

    Attributes:
        seconds: Of one iteration, in the experience trained on last.
    """

    SKIPPED = 3

    def __init__(self) -> None:
        super().__init__()
        self.seconds = float("nan")
        self._count = 0
        self._start = 0.0

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin to count."""
        self._count = 0

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take the time when the first iteration that counts begins."""
        if self._count == self.SKIPPED:
            self._start = clock(strategy.device)
        self._count += 1

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take the time when all iterations are done; what an evaluator reports comes after that, and is no step."""
        self.seconds = (clock(strategy.device) - self._start) / (self._count - self.SKIPPED)


class Trainer:
    """A strategy that trains on the same few mini-batches again and again; called, it trains once and tells the time.

    Args:
        case: What to train.
        device: Where.
        plugins: Of the strategy.
        metrics: Of its evaluator.
        change: What else happens to the network first.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        plugins: list[SupervisedPlugin[Any]] | None = None,
        metrics: list[Any] | None = None,
        change: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        torch.manual_seed(0)
        count = case.batch_size * (case.steps + StepTimer.SKIPPED)
        data = [(torch.randn(count, *case.shape), torch.randint(case.classes, (count,)))]
        data[0][1][: case.classes] = torch.arange(case.classes)
        self.experience = make_stream(data, data, "domain").streams["train"][0]
        model = case.computing.network(change(build_model(case.model, case.classes, case.shape).to(device)))
        self.timer = StepTimer()
        self.strategy = Naive(
            model=model,
            optimizer=case.optimizer(model.parameters()),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=case.batch_size,
            device=device,
            # The timer stands first, so that what plugins do when an epoch is over is no part of its steps.
            plugins=[self.timer, *case.computing.plugins(), *(plugins or []), TensorLoaderPlugin()],
            evaluator=EvaluationPlugin(*(metrics or []), loggers=[Silent()]),
        )

    def __call__(self) -> float:
        """Train for one experience; returns seconds a step."""
        self.strategy.train(self.experience)
        return self.timer.seconds


class Silent(BaseLogger):
    """A logger that takes every value and writes none."""
