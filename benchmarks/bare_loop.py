"""A bare PyTorch loop over the same stream, network and optimizer: what a run's time is compared with.

    python -m benchmarks.bare_loop cifar100-pairs --data DIR

trains as the strategy `naive` does, with a new head for every experience, without Avalanche and without this library.
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.evaluating import experience_tensors
from benchmarks.models import build_model
from benchmarks.streams import StreamSettings, get_benchmark, stream_shape


def bare_loop(
    name: str, data: Path | None = None, seed: int = 0, experiences: int | None = None
) -> tuple[float, float]:
    """Train on a benchmark in the task scenario, in one thread.

    Args:
        name: A benchmark whose network has a trunk and an Adam optimizer.
        data: Folder of the data.
        seed: Seed of the stream and the network.
        experiences: Length of the stream; None: the benchmark's.

    Returns:
        Seconds of training, and the mean accuracy just after learning over the last fifth of the stream.
    """
    torch.set_num_threads(1)
    benchmark = get_benchmark(name)
    settings = benchmark.resolve(StreamSettings(seed, experiences, "task", data))
    stream = benchmark.build(settings)
    shape = stream_shape(stream, settings)
    parts = [
        (experience_tensors(train), experience_tensors(test))
        for train, test in zip(stream.train_stream, stream.test_stream, strict=True)
    ]
    torch.manual_seed(seed)
    trunk = build_model(benchmark.model, *shape).trunk
    assert isinstance(trunk, nn.Module)
    width = trunk(parts[0][0].inputs[:2]).shape[1]
    optimizer = torch.optim.Adam(trunk.parameters(), lr=benchmark.learning_rate)
    seconds, accuracies = 0.0, []
    for train, test in parts:
        head = nn.Linear(width, shape.num_classes)
        head_optimizer = torch.optim.Adam(head.parameters(), lr=benchmark.learning_rate)
        start = time.perf_counter()
        for _ in range(benchmark.epochs):
            for rows in torch.randperm(len(train.targets)).split(benchmark.batch_size):
                optimizer.zero_grad()
                head_optimizer.zero_grad()
                F.cross_entropy(head(trunk(train.inputs[rows])), train.targets[rows]).backward()
                optimizer.step()
                head_optimizer.step()
        seconds += time.perf_counter() - start
        with torch.no_grad():
            accuracies.append(float((head(trunk(test.inputs)).argmax(1) == test.targets).float().mean()))
    late = accuracies[-math.ceil(len(accuracies) / 5) :]
    return seconds, sum(late) / len(late)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Time a bare PyTorch loop over a benchmark.")
    parser.add_argument("benchmark")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experiences", type=int)
    asked = parser.parse_args()
    taken, accuracy = bare_loop(asked.benchmark, asked.data, asked.seed, asked.experiences)
    print(f"{taken:.1f} s of training, late learning accuracy {accuracy:.3f}")
