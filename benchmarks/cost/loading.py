"""What running costs: samples a second with Avalanche's own loader, with ours, and in a bare PyTorch loop."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_tensor

from benchmarks.cost.cases import Silent
from benchmarks.cost.table import Line
from benchmarks.cost.timing import clock, interleave, ratio
from benchmarks.models import build_model
from benchmarks.streams import make_stream
from plasticity.loading import TensorLoaderPlugin

SAMPLES = 2048
NETWORKS = (
    ("mlp-2x100, SGD, batch 64", "mlp-2x100", (1, 28, 28), 64),
    ("pairs-conv, SGD, batch 32", "pairs-conv", (3, 32, 32), 32),
)


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Pictures as torchvision's data sets keep them: arrays that become PIL images, and then tensors."""

    def __init__(self, pixels: np.ndarray, labels: list[int]):
        self.pixels, self.targets = pixels, labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = self.pixels[index]
        return to_tensor(Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)), self.targets[
            index
        ]


def measure(device: torch.device, rounds: int) -> Iterator[Line]:
    """Measure both networks.

    Args:
        device: Where.
        rounds: Interleaved rounds.
    """
    for case, model, shape, batch_size in NETWORKS:
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (SAMPLES, *shape[1:], shape[0]), dtype=np.uint8)
        labels = (np.arange(SAMPLES) % 10).tolist()
        stock = benchmark_from_datasets(
            train=[as_classification_dataset(Images(pixels, labels))],  # type: ignore[arg-type]  # has targets
            test=[as_classification_dataset(Images(pixels, labels))],  # type: ignore[arg-type]
        )
        inputs = torch.from_numpy(pixels).movedim(3, 1).float() / 255
        tensors = [(inputs, torch.tensor(labels))]
        ours = make_stream(tensors, tensors, "domain")
        build = partial(build_model, model, 10, shape)
        blocks = {
            "Avalanche's loader": _avalanche(stock, build, batch_size, device, []),
            "tensors": _avalanche(ours, build, batch_size, device, [TensorLoaderPlugin()]),
            "bare loop over tensors": _bare(tensors[0], build, batch_size, device),
        }
        times = interleave(blocks, rounds)
        yield Line(
            "loading",
            case,
            "tensors",
            "samples a second / Avalanche's loader",
            ratio(times, "Avalanche's loader", "tensors"),
        )
        yield Line(
            "loading",
            case,
            "tensors",
            "samples a second / bare loop",
            ratio(times, "bare loop over tensors", "tensors"),
        )


def _avalanche(
    stream: Any, build: Callable[[], nn.Module], batch_size: int, device: torch.device, plugins: list[Any]
) -> Callable[[], float]:
    torch.manual_seed(0)
    model = build().to(device)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch_size,
        device=device,
        plugins=plugins,
        evaluator=EvaluationPlugin(loggers=[Silent()]),
    )
    experience = stream.streams["train"][0]

    def block() -> float:
        start = clock(device)
        strategy.train(experience)
        return (clock(device) - start) / SAMPLES

    return block


def _bare(
    data: tuple[torch.Tensor, torch.Tensor], build: Callable[[], nn.Module], batch_size: int, device: torch.device
) -> Callable[[], float]:
    torch.manual_seed(0)
    model = build().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, labels = (part.to(device) for part in data)

    def block() -> float:
        start = clock(device)
        for rows in torch.randperm(len(labels)).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows.to(device)]), labels[rows.to(device)]).backward()
            optimizer.step()
        return (clock(device) - start) / SAMPLES

    return block
