"""Streams made from the data sets: split by classes, or permuted."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.data import ImageData, as_inputs, load
from benchmarks.streams.benchmark import StreamSettings
from plasticity.errors import UserError

if TYPE_CHECKING:  # imports Avalanche, which takes seconds
    from avalanche.benchmarks import CLScenario

Part = tuple[Tensor, Tensor]  # inputs, labels


def make_stream(train: Sequence[Part], test: Sequence[Part], scenario: str) -> "CLScenario":
    """Make an Avalanche benchmark from tensors.

    Every experience carries task labels, as those of Avalanche's own benchmarks do: its number where the scenario is
    "task", else 0.

    Args:
        train: Inputs (samples, ...) and int64 labels (samples,) of each experience.
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

    def dataset(part: Part, index: int) -> TaskAwareSupervisedClassificationDataset:
        inputs, labels = part
        task = index if scenario == "task" else 0
        attributes = [DataAttribute(labels.tolist(), "targets"), TaskLabels(ConstantSequence(task, len(labels)))]
        return TaskAwareSupervisedClassificationDataset([TensorDataset(inputs, labels)], data_attributes=attributes)

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


def split_stream(dataset: str, settings: StreamSettings, *, classes_each: int | None = None) -> "CLScenario":
    """Split a data set by classes, in an order drawn from the seed.

    In the class scenario classes are numbered in the order in which they appear.

    Args:
        dataset: A name in `benchmarks.data`.
        settings: Without None but for `data`.
        classes_each: Classes in an experience, some classes being left out where there are too few experiences; None:
            all classes, shared out; where they cannot be shared out equally, the first experiences have one more.

    Raises:
        UserError: If there are too few classes for that number of experiences.
    """
    data = load(dataset, settings.data)
    count, asked = 1 + int(data.train_y.max()), settings.experiences or 1
    smallest = classes_each or (1 if settings.scenario == "class" else 2)  # one class alone is nothing to learn
    if not 1 <= asked <= count // smallest:
        raise UserError(
            f"the {count} classes of {dataset} cannot be split into {asked} experiences "
            f"(scenario {settings.scenario}): possible is 1 to {count // smallest}"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed))
    groups = order[: asked * classes_each if classes_each else count].tensor_split(asked)

    def parts(pixels: Tensor, labels: Tensor) -> list[Part]:
        found = []
        first = 0
        for classes in groups:
            new = torch.full((count,), -1)
            new[classes] = torch.arange(len(classes)) + (first if settings.scenario == "class" else 0)
            first += len(classes)
            chosen = torch.nonzero(new[labels] >= 0).flatten()
            found.append((as_inputs(dataset, pixels[chosen]), new[labels[chosen]]))
        return found

    train_x, train_y, test_x, test_y = data
    return make_stream(parts(train_x, train_y), parts(test_x, test_y), str(settings.scenario))


def permuted_stream(dataset: str, settings: StreamSettings) -> "CLScenario":
    """Show a data set again and again, each time with its pixels in another order, drawn from the seed.

    Every experience is permuted, the first too, so that all are equally hard. All have all classes.

    Args:
        dataset: A name in `benchmarks.data`.
        settings: Without None but for `data`.
    """
    data: ImageData = load(dataset, settings.data)
    train, test = (as_inputs(dataset, pixels).flatten(1) for pixels in (data.train_x, data.test_x))
    generator = torch.Generator().manual_seed(settings.seed)
    orders = [torch.randperm(train.shape[1], generator=generator) for _ in range(settings.experiences or 1)]
    return make_stream(
        [(train[:, order], data.train_y) for order in orders],
        [(test[:, order], data.test_y) for order in orders],
        str(settings.scenario),
    )
