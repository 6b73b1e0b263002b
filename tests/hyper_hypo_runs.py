"""Short Avalanche runs, and the choice of units in numpy, for the tests of hyper- and hypo-units."""

import math

import numpy as np
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.models import IncrementalClassifier, MTSimpleMLP
from avalanche.training import Naive
from torch import nn
from torch.utils.data import TensorDataset

from plasticity.methods.hyper_hypo_units import HyperHypoRule, select_units
from plasticity.watching.unit_statistics import UnitStatistics

SAMPLES, BATCH = 48, 16


def statistics(fired: list[int], count: int, mean_abs: list[float] | None = None) -> UnitStatistics:
    magnitude = torch.tensor(mean_abs if mean_abs is not None else [0.0] * len(fired), dtype=torch.float64)
    return UnitStatistics(torch.tensor(fired), count, magnitude, magnitude)


def numpy_ends(score: np.ndarray, candidates: list[int], percent: float) -> tuple[list[int], list[int]]:
    """Top and bottom units one at a time, the first of equals."""
    number = (
        0 if percent == 0 else min(max(1, int(np.floor(len(candidates) * percent / 100 + 0.5))), len(candidates) // 2)
    )
    hyper: list[int] = []
    hypo: list[int] = []
    for _ in range(number):
        hyper.append(max((u for u in candidates if u not in hyper), key=lambda u: (score[u], -u)))
    for _ in range(number):
        hypo.append(min((u for u in candidates if u not in hyper + hypo), key=lambda u: (score[u], u)))
    return hyper, hypo


def numpy_entropy(values: np.ndarray) -> float:
    """Of one window of one unit, value by value."""
    least, greatest = values.min(), values.max()
    if greatest == least:
        return 0.0
    counts = [0] * 16
    for value in values:
        counts[min(int((value - least) / (greatest - least) * 16), 15)] += 1
    shares = [count / len(values) for count in counts if count]
    return -math.fsum(share * math.log(share) for share in shares)


def choose(stats: dict[str, UnitStatistics], rule: HyperHypoRule, seed: int = 0, without=None):
    return select_units(stats, rule, torch.Generator().manual_seed(seed), without)


# --- networks and streams --------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Dropout(0.1), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 12))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 10, 3, padding=1, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(10, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(8 * 4, 12),
        nn.ReLU(),
        nn.Linear(12, 6),
    )


def growing() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 20), nn.BatchNorm1d(20), nn.ReLU(), IncrementalClassifier(20))


def multi_head() -> nn.Module:
    return MTSimpleMLP(input_size=8, hidden_size=20)


# Model, shape of its input, where to see the units of which layer.
NETWORKS = {
    "mlp": (mlp, (8,), {"0": "1", "3": "4"}),
    "convolutional": (convolutional, (1, 4, 4), {"0": "2", "4": "6", "9": "10"}),
    "growing": (growing, (8,), {"0": "2"}),
    "multi_head": (multi_head, (8,), {"features.0": "features.1"}),
}


class Labelled(TensorDataset):
    """Tensors with the attribute by which Avalanche splits them."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        super().__init__(x, y)
        self.targets = y.tolist()


def stream(network: str, experiences: int = 3):
    """Experiences of two classes each; a network with several heads gets task labels."""
    shape = NETWORKS[network][1]
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(2 * experiences).repeat_interleave(SAMPLES // 2)
    x = torch.randn(len(y), *shape, generator=generator) + y.view(-1, *[1] * len(shape)) / 3
    return nc_benchmark(
        Labelled(x, y), Labelled(x, y), experiences, task_labels=network == "multi_head", shuffle=False
    ).train_stream


def make_optimizer(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.05)
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    return made(model.parameters(), lr=0.01, weight_decay=0.05)


def naive(network: str, plugins, kind: str = "adam", epochs: int = 5, seed: int = 0, **arguments):
    torch.manual_seed(seed)
    model = NETWORKS[network][0]()
    return Naive(
        model=model,
        optimizer=make_optimizer(kind, model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        train_epochs=epochs,
        plugins=plugins,
        **{"evaluator": None, **arguments},
    )


def run(network: str, plugins, experiences: int = 3, **arguments) -> Naive:
    strategy = naive(network, plugins, **arguments)
    for experience in stream(network, experiences):
        strategy.train(experience)
    return strategy


def everything(strategy: Naive) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and state tensor, by a readable name."""
    found = {name: tensor.detach().clone() for name, tensor in strategy.model.state_dict().items()}
    for name, parameter in strategy.model.named_parameters():
        for key, value in strategy.optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                found[f"{name} {key}"] = value.clone()
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
