"""Streams in which classes arrive one group after another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.images import Images, Pixels
from benchmarks.streams.benchmark import StreamSettings
from benchmarks.streams.builders import make_stream, read
from plasticity.errors import UserError

if TYPE_CHECKING:  # imports Avalanche, which takes seconds
    from avalanche.benchmarks import CLScenario


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
    train_x, train_y, test_x, test_y = read(dataset, settings)
    count, asked = 1 + int(train_y.max()), settings.experiences or 1
    smallest = classes_each or (1 if settings.scenario == "class" else 2)  # one class alone is nothing to learn
    if not 1 <= asked <= count // smallest:
        raise UserError(
            f"the {count} classes of {dataset} cannot be split into {asked} experiences "
            f"(scenario {settings.scenario}): possible is 1 to {count // smallest}"
        )
    groups = _order(count, settings)[: asked * classes_each if classes_each else count].tensor_split(asked)
    starts = _starts([len(classes) for classes in groups], settings)
    return make_stream(
        _by_classes(dataset, train_x, train_y, groups, starts),
        _by_classes(dataset, test_x, test_y, groups, starts),
        str(settings.scenario),
    )


def alternating_stream(dataset: str, settings: StreamSettings, *, hard: int = 5, easy: int = 1) -> "CLScenario":
    """Alternate between hard experiences of many classes, of which the first is one, and easy ones of few.

    Every class appears once. The training images of an easy experience are there so many times that all experiences
    take equally many steps. In the class scenario classes are numbered in the order in which they appear.

    Args:
        dataset: A name in `benchmarks.data`.
        settings: Without None but for `data`.
        hard: Classes of a hard experience.
        easy: Classes of an easy experience, of which `hard` is a multiple.

    Raises:
        UserError: If there are too few classes for that number of experiences.

    Source:
        5+1 CIFAR of Kumar et al. 2023 (L2 Init), where easy and hard tasks take the same number of steps.
    """
    train_x, train_y, test_x, test_y = read(dataset, settings)
    count, asked = 1 + int(train_y.max()), settings.experiences or 1
    sizes = [easy if index % 2 else hard for index in range(asked)]
    if sum(sizes) > count:
        pairs, rest = divmod(count, hard + easy)
        raise UserError(
            f"the {count} classes of {dataset} are too few for {asked} experiences of {hard} and {easy} classes in "
            f"turn: possible is 1 to {2 * pairs + (rest >= hard)}"
        )
    groups, starts = _order(count, settings)[: sum(sizes)].split(sizes), _starts(sizes, settings)
    train = _by_classes(dataset, train_x, train_y, groups, starts)
    for index in range(1, asked, 2):
        part = train[index]
        assert part.rows is not None
        times = hard // easy
        train[index] = Images(dataset, part.pixels, part.labels.repeat(times), part.rows.repeat(times))
    return make_stream(train, _by_classes(dataset, test_x, test_y, groups, starts), str(settings.scenario))


def incremental_stream(dataset: str, settings: StreamSettings, *, classes_each: int = 5) -> "CLScenario":
    """Add classes in an order drawn from the seed, and keep all data of the earlier ones: nothing need be forgotten.

    An experience has the training images of all classes so far, and its test images likewise. Classes are numbered in
    the order in which they appear.

    Args:
        dataset: A name in `benchmarks.data`.
        settings: Without None but for `data`.
        classes_each: How many an experience adds.

    Raises:
        UserError: If there are too few classes for that number of experiences.

    Source:
        Class-incremental CIFAR-100 of Dohare et al. 2024.
    """
    train_x, train_y, test_x, test_y = read(dataset, settings)
    count, asked = 1 + int(train_y.max()), settings.experiences or 1
    if asked * classes_each > count:
        raise UserError(
            f"the {count} classes of {dataset} are too few for {asked} experiences of {classes_each} more classes "
            f"each: possible is 1 to {count // classes_each}"
        )
    order = _order(count, settings)
    groups = [order[: (index + 1) * classes_each] for index in range(asked)]
    starts = [0] * asked
    return make_stream(
        _by_classes(dataset, train_x, train_y, groups, starts),
        _by_classes(dataset, test_x, test_y, groups, starts),
        str(settings.scenario),
    )


def _order(count: int, settings: StreamSettings) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed))


def _starts(sizes: list[int], settings: StreamSettings) -> list[int]:
    """The first label of each group: labels go on from group to group only in the class scenario."""
    return [sum(sizes[:index]) if settings.scenario == "class" else 0 for index in range(len(sizes))]


def _by_classes(
    dataset: str, pixels: Pixels, labels: Tensor, groups: Sequence[Tensor], starts: Sequence[int]
) -> list[Images]:
    """Choose the images of each group of classes, which get the labels from `starts` on."""
    found = []
    for classes, start in zip(groups, starts, strict=True):
        new = torch.full((1 + max(int(labels.max()), int(classes.max())),), -1)
        new[classes] = torch.arange(start, start + len(classes))
        rows = torch.nonzero(new[labels] >= 0).flatten()
        found.append(Images(dataset, pixels, new[labels[rows]], rows))
    return found
