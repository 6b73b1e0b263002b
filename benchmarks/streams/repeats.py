"""Streams in which the same images come again and again: permuted, with other labels, or more and more of them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.images import Images
from benchmarks.streams.benchmark import StreamSettings
from benchmarks.streams.builders import generator, make_stream, read
from plasticity.errors import UserError

if TYPE_CHECKING:  # imports Avalanche, which takes seconds
    from avalanche.benchmarks import CLScenario


def permuted_stream(
    dataset: str, settings: StreamSettings, *, samples: int | None = None, test_samples: int | None = None
) -> "CLScenario":
    """Show a data set again and again, each time with its pixels in another order, drawn from the seed.

    Every experience is permuted, the first too, so that all are equally hard. All have all classes.

    Args:
        dataset: A name in `benchmarks.data`.
        settings: Without None but for `data`.
        samples: Training images of an experience, drawn anew for each; None: all.
        test_samples: Test images, the same for all experiences; None: all.
    """
    data = read(dataset, settings)
    values = data.train_x[torch.arange(1)].numel()
    shuffle = torch.Generator().manual_seed(settings.seed)
    orders = [torch.randperm(values, generator=shuffle) for _ in range(settings.experiences or 1)]

    def train(index: int, order: Tensor) -> Images:
        if samples is None:
            return Images(dataset, data.train_x, data.train_y, order=order)
        rows = _draw(len(data.train_y), samples, generator(settings, 1, index))
        return Images(dataset, data.train_x, data.train_y[rows], rows, order)

    test_rows = _draw(len(data.test_y), test_samples, generator(settings, 0))
    test_y = data.test_y[test_rows]
    return make_stream(
        [train(index, order) for index, order in enumerate(orders)],
        [Images(dataset, data.test_x, test_y, test_rows, order) for order in orders],
        str(settings.scenario),
    )


def random_label_stream(dataset: str, settings: StreamSettings, *, samples: int = 1200) -> "CLScenario":
    """Give the same images other labels in every experience: they have to be learnt by heart.

    The labels of an experience are those of the images in an order drawn from the seed, so that the classes keep their
    sizes. Nothing about other images can be learnt from them, so an experience is tested on its own training images.

    Args:
        dataset: A name in `benchmarks.data`.
        settings: Without None but for `data`.
        samples: Images, drawn from the seed.

    Source:
        Random label MNIST and CIFAR of Kumar et al. 2023 (L2 Init).
    """
    data = read(dataset, settings)
    rows = _draw(len(data.train_y), samples, generator(settings, 0))
    labels = data.train_y[rows]
    parts = []
    for index in range(settings.experiences or 1):
        order = torch.randperm(len(rows), generator=generator(settings, 1, index))
        parts.append(Images(dataset, data.train_x, labels[order], rows))
    return make_stream(parts, parts, str(settings.scenario))


def warm_start_stream(dataset: str, settings: StreamSettings, *, first: float = 0.1) -> "CLScenario":
    """Begin with a share of the training images and end with all of them, in equal steps; the test set stays whole.

    An experience has all images of the one before.

    Args:
        dataset: A name in `benchmarks.data`.
        settings: Without None but for `data`.
        first: The share of the first experience, drawn from the seed.

    Raises:
        UserError: If there is to be one experience only.

    Source:
        Ash & Adams 2020; with a tenth at first, the FIRE suite.
    """
    data = read(dataset, settings)
    asked, count = settings.experiences or 1, len(data.train_y)
    if asked < 2:
        raise UserError(f"a warm start needs at least 2 experiences: {first:.0%} of {dataset}, and later all of it")
    order = torch.randperm(count, generator=generator(settings, 0))
    sizes = [round(count * (first + (1 - first) * index / (asked - 1))) for index in range(asked)]
    return make_stream(
        [Images(dataset, data.train_x, data.train_y[order[:size]], order[:size]) for size in sizes],
        [Images(dataset, data.test_x, data.test_y)] * asked,
        str(settings.scenario),
    )


def _draw(count: int, wanted: int | None, source: torch.Generator) -> Tensor:
    """Draw numbers below `count` without repetition; None: all of them, in their order."""
    if wanted is None:
        return torch.arange(count)
    return torch.randperm(count, generator=source)[:wanted]
