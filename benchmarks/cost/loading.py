"""What running costs: samples a second with Avalanche's own loader, with ours, and in a bare PyTorch loop."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torchvision import datasets, transforms

from benchmarks.computing import Computing
from benchmarks.cost.bare import BareSteps
from benchmarks.cost.cases import Silent
from benchmarks.cost.table import Line
from benchmarks.cost.timing import clock, interleave, ratio
from benchmarks.models import build_model
from plasticity.loading import TensorLoaderPlugin, dataset_tensors

SAMPLES, EPOCHS = 2048, 5
PLAIN = Computing()
NETWORKS = (
    ("mlp-2x100, SGD, batch 64", "mlp-2x100", (1, 28, 28), 64, datasets.MNIST),
    ("pairs-conv, SGD, batch 32", "pairs-conv", (3, 32, 32), 32, datasets.CIFAR10),
)
STOCK, OURS, BARE = "Avalanche's loader", "TensorLoaderPlugin", "bare loop over tensors"


def pictures(kind: type, shape: tuple[int, ...], count: int) -> Any:
    """Make a data set of torchvision's with random images, which it turns into PIL images, without any file.

    Args:
        kind: `MNIST` or `CIFAR10` of torchvision's.
        shape: Channels, height and width.
        count: Images.
    """
    channels, *sizes = shape
    generator, labels = np.random.default_rng(0), np.arange(count) % 10
    data = kind.__new__(kind)
    data.transform = data.target_transform = None
    if channels == 1:
        data.data = torch.from_numpy(generator.integers(0, 256, (count, *sizes), dtype=np.uint8))
        data.targets = torch.from_numpy(labels)
    else:
        data.data, data.targets = generator.integers(0, 256, (count, *sizes, channels), dtype=np.uint8), labels.tolist()
    return data


def stock_stream(kind: type, shape: tuple[int, ...], count: int) -> Any:
    """Make one experience as Avalanche's own benchmarks are made, with transformations of PIL images.

    Args:
        kind: As for `pictures`.
        shape: Channels, height and width.
        count: Images.
    """
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * shape[0], (0.25,) * shape[0])])
    data = pictures(kind, shape, count)
    return nc_benchmark(
        data,
        data,
        n_experiences=1,
        task_labels=False,
        shuffle=False,
        train_transform=transform,
        eval_transform=transform,
    )


def measure(device: torch.device, rounds: int, *, computing: Computing = PLAIN) -> Iterator[Line]:
    """Measure both networks, each on one experience of a stream for some epochs, with the same seeds.

    Args:
        device: Where.
        rounds: Interleaved rounds.
        computing: How networks compute, those of the bare loop, too.
    """
    for case, model, shape, batch_size, kind in NETWORKS:
        experience = stock_stream(kind, shape, SAMPLES).train_stream[0]
        inputs, labels, _ = dataset_tensors(experience.dataset)
        build = partial(build_model, model, 10, shape)
        blocks = {
            STOCK: _avalanche(experience, build, batch_size, device, [], computing),
            OURS: _avalanche(experience, build, batch_size, device, [TensorLoaderPlugin()], computing),
            BARE: _bare((inputs, labels), build, batch_size, device, computing),
        }
        times = interleave(blocks, rounds)
        for other in (STOCK, BARE):
            yield Line("loading", case, OURS, f"samples a second / {other}", ratio(times, other, OURS))


def _avalanche(
    experience: Any,
    build: Callable[[], nn.Module],
    batch_size: int,
    device: torch.device,
    plugins: list[Any],
    computing: Computing = PLAIN,
) -> Callable[[], float]:
    torch.manual_seed(0)
    model = computing.network(build().to(device))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch_size,
        train_epochs=EPOCHS,
        device=device,
        plugins=[*computing.plugins(), *plugins],
        evaluator=EvaluationPlugin(loggers=[Silent()]),
    )

    def block() -> float:
        start = clock(device)
        strategy.train(experience)
        return (clock(device) - start) / SAMPLES / EPOCHS

    return block


def _bare(
    data: tuple[torch.Tensor, torch.Tensor],
    build: Callable[[], nn.Module],
    batch_size: int,
    device: torch.device,
    computing: Computing,
) -> Callable[[], float]:
    torch.manual_seed(0)
    model = computing.network(build().to(device))
    steps = BareSteps(model, torch.optim.SGD(model.parameters(), lr=0.01), computing, device)
    inputs, labels = (part.to(device) for part in data)

    def block() -> float:
        start = clock(device)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(labels)).to(device).split(batch_size):
                steps.step(inputs[rows], labels[rows])
        return (clock(device) - start) / SAMPLES / EPOCHS

    return block
