"""Streams with a domain shift: scikit-learn's digits as they are, then others: turned, faint, noisy or moved."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.data import as_inputs
from benchmarks.streams import Benchmark, StreamSettings, make_stream, register_benchmark
from benchmarks.streams.builders import generator, read
from plasticity.errors import UserError

if TYPE_CHECKING:  # imports Avalanche, which takes seconds
    from avalanche.benchmarks import CLScenario

CLEAN = 0.6
"""Share of the training images in the first experience."""

Shift = Callable[[Tensor, torch.Generator], Tensor]


def turned(images: Tensor, source: torch.Generator, degrees: float = 30.0) -> Tensor:
    """Turn images, (samples, 1, height, width), anticlockwise."""
    angle = torch.deg2rad(torch.tensor(degrees))
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    grid = F.affine_grid(F.pad(matrix, (0, 1)).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def faint(images: Tensor, source: torch.Generator, kept: float = 0.3) -> Tensor:
    """Draw the values of each image towards their mean."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + kept * (images - mean)


def noisy(images: Tensor, source: torch.Generator, std: float = 0.3) -> Tensor:
    """Add normal noise to every value, and cut off at 0 and 1."""
    return (images + std * torch.randn(images.shape, generator=source)).clamp(0, 1)


def moved(images: Tensor, source: torch.Generator) -> Tensor:
    """Move images right by a pixel; what leaves is lost."""
    return F.pad(images, (1, -1, 0, 0))


SHIFTS: dict[str, Shift] = {"turned": turned, "faint": faint, "noisy": noisy, "moved": moved}


def shifted_stream(shift: str, settings: StreamSettings) -> "CLScenario":
    """Show one part of the digits as they are, then the rest of them in another domain.

    The test images of an experience, all there are, are of its domain.

    Args:
        shift: One of `SHIFTS`.
        settings: Without None but for `data`.

    Raises:
        UserError: If there are to be more than two experiences.
    """
    if settings.experiences not in (1, 2):
        raise UserError(f"digits-{shift} has 2 experiences, the second in another domain, not {settings.experiences}")
    data = read("digits", settings)
    train, test = (as_inputs("digits", x[:]) for x in (data.train_x, data.test_x))
    drawn = torch.randperm(len(train), generator=generator(settings, 0))
    first, rest = drawn.tensor_split([round(CLEAN * len(drawn))])
    other = [_shifted(shift, x, generator(settings, 1, index)) for index, x in enumerate((train[rest], test))]
    parts = [(train[first], data.train_y[first]), (other[0], data.train_y[rest])]
    tests = [(test, data.test_y), (other[1], data.test_y)]
    return make_stream(parts[: settings.experiences], tests[: settings.experiences], str(settings.scenario))


def _shifted(shift: str, inputs: Tensor, source: torch.Generator) -> Tensor:
    return SHIFTS[shift](inputs.view(-1, 1, 8, 8), source).flatten(1)


for _name in SHIFTS:
    register_benchmark(
        Benchmark(
            name=f"digits-{_name}",
            summary=f"scikit-learn's digits, then others that are {_name}",
            stream=partial(shifted_stream, _name),
            experiences=2,
            model="mlp-3x128",
            epochs=20,
            scenario="domain",
            scenarios=("domain",),
            source="made for the study of hyper- and hypo-units",
        )
    )
