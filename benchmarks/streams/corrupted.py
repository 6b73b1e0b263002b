"""A stream of domains: clean images, then corrupted ones."""

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.images import Images, Pixels
from benchmarks.streams.benchmark import StreamSettings
from benchmarks.streams.builders import generator, make_stream, read
from benchmarks.streams.corruptions import CORRUPTIONS, corrupt
from plasticity.errors import UserError

if TYPE_CHECKING:  # imports Avalanche, which takes seconds
    from avalanche.benchmarks import CLScenario

SEVERITIES = (5, 4, 3, 2, 1)


class CorruptedPixels:
    """Images that are corrupted, all at once, when the first of them is asked for, and kept from then on as uint8.

    Args:
        pixels: Stored images.
        rows: Which of them.
        corruption: One of `CORRUPTIONS`.
        severity: From 1 to 5.
        settings: Of the stream.
        purpose: Numbers that tell its random numbers from others of the stream.
    """

    def __init__(
        self, pixels: Pixels, rows: Tensor, corruption: str, severity: int, settings: StreamSettings, *purpose: int
    ):
        self.clean = pixels
        self.rows = rows
        self.corruption = corruption
        self.severity = severity
        self.settings = settings
        self.purpose = purpose

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.pixels[rows]

    @cached_property
    def pixels(self) -> Tensor:
        """All of them."""
        source = generator(self.settings, *self.purpose)
        return corrupt(self.corruption, self.clean[self.rows], self.severity, source)


def corrupted_stream(dataset: str, settings: StreamSettings, *, clean: float = 0.8) -> "CLScenario":
    """Show one part of the training images as they are, then the rest of them in one corruption after another.

    The test images of an experience, all there are, have its corruption. A network that is trained on the first
    experience meets in each later one images that it has not seen, of a domain that it has not seen. All corruptions
    come once, in an order drawn from the seed, at severity 5, and then again, in other orders, at 4, 3, 2 and 1.

    Args:
        dataset: A name in `benchmarks.data`, of colour images.
        settings: Without None but for `data`.
        clean: Share of the training images in the first experience, drawn from the seed.

    Raises:
        UserError: If there are too few corruptions for that number of experiences.

    Source:
        Kinds and severities after Hendrycks & Dietterich 2019; one domain after another at severity 5 as in continual
        test-time adaptation (Wang et al. 2022), but with training images and their labels, which a strategy may leave
        aside.
    """
    data = read(dataset, settings)
    asked, largest = settings.experiences or 1, 1 + len(CORRUPTIONS) * len(SEVERITIES)
    if asked > largest:
        raise UserError(
            f"there are {largest - 1} corrupted domains of {dataset}: possible is 1 to {largest} experiences"
        )
    drawn = torch.randperm(len(data.train_y), generator=generator(settings, 0))
    first, rest = drawn.tensor_split([round(clean * len(drawn))])
    everything = torch.arange(len(data.test_y))
    train = [Images(dataset, data.train_x, data.train_y[first], first)]
    test = [Images(dataset, data.test_x, data.test_y)]
    rest_y = data.train_y[rest]
    for index, (name, severity) in enumerate(domains(settings)[: asked - 1], start=1):
        pixels = CorruptedPixels(data.train_x, rest, name, severity, settings, 2, index, 0)
        train.append(Images(dataset, pixels, rest_y))
        pixels = CorruptedPixels(data.test_x, everything, name, severity, settings, 2, index, 1)
        test.append(Images(dataset, pixels, data.test_y))
    return make_stream(train, test, str(settings.scenario))


def domains(settings: StreamSettings) -> list[tuple[str, int]]:
    """Return corruption and severity of every experience after the first, as many as there are."""
    names = list(CORRUPTIONS)
    return [
        (names[number], severity)
        for severity in SEVERITIES
        for number in torch.randperm(len(names), generator=generator(settings, 1, severity)).tolist()
    ]
