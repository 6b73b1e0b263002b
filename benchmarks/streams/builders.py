"""An Avalanche benchmark from images or tensors, and what the functions that choose them share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import ImageData, load
from benchmarks.images import Images
from benchmarks.streams.benchmark import StreamSettings

if TYPE_CHECKING:  # imports Avalanche, which takes seconds
    from avalanche.benchmarks import CLScenario

Part = Images | tuple[Tensor, Tensor]  # inputs, labels


def make_stream(train: Sequence[Part], test: Sequence[Part], scenario: str) -> "CLScenario":
    """Make an Avalanche benchmark from images or tensors.

    Every experience carries task labels, as those of Avalanche's own benchmarks do: its number where the scenario is
    "task", else 0.

    Args:
        train: Of each experience an `Images`, or inputs (samples, ...) and int64 labels (samples,).
        test: Likewise; as many.
        scenario: One of `SCENARIOS`.
    """
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
    from avalanche.benchmarks.utils import (
        ConstantSequence,
        DataAttribute,
        TaskAwareSupervisedClassificationDataset,
        TaskLabels,
    )
    from torch.utils.data import TensorDataset

    known: dict[int, DataAttribute[int]] = {}  # experiences that have the same labels share them

    def dataset(part: Part, index: int) -> TaskAwareSupervisedClassificationDataset:
        labels = part.labels if isinstance(part, Images) else part[1]
        targets = known.setdefault(id(labels), DataAttribute(labels.tolist(), "targets"))
        task = index if scenario == "task" else 0
        attributes = [targets, TaskLabels(ConstantSequence(task, len(labels)))]
        samples = part if isinstance(part, Images) else TensorDataset(*part)
        return TaskAwareSupervisedClassificationDataset([samples], data_attributes=attributes)

    streams = {
        name: [dataset(part, index) for index, part in enumerate(parts)]
        for name, parts in (("train", train), ("test", test))
    }
    benchmark = with_task_labels(with_classes_timeline(benchmark_from_datasets(**streams)))
    for stream in benchmark.streams.values():
        for experience in stream:
            # Sets here, lists in Avalanche's own benchmarks; a set breaks MultiHeadClassifier, which indexes by it.
            for name in ("classes_in_this_experience", "previous_classes", "classes_seen_so_far", "future_classes"):
                setattr(experience, name, sorted(getattr(experience, name)))
    return benchmark


def read(dataset: str, settings: StreamSettings) -> ImageData:
    """Read the data set of a stream, as `benchmarks.data.load`."""
    return load(dataset, settings.data)


def derived_seed(seed: int, *purpose: int) -> int:
    """Return a seed of its own for each purpose, so that one more draw for one leaves the others as they are.

    Args:
        seed: The seed of the stream.
        purpose: Numbers of at least 0, which must not be the same for two purposes in a stream.
    """
    return int(np.random.SeedSequence(seed % 2**64, spawn_key=purpose).generate_state(1)[0])


def generator(settings: StreamSettings, *purpose: int) -> torch.Generator:
    """Return a source of random numbers of its own for each purpose; see `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(settings.seed, *purpose))
