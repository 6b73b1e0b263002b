"""Torchvision’s transformations, done to a batch at a time on its device: the same values, the same distribution."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.lru_cache(maxsize=64)
def constant(values: tuple[float, ...] | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor that is made once and then stays on its device."""
    return torch.tensor(values, dtype=dtype, device=device)


@dataclass(frozen=True)
class Scaled:
    """Bytes from 0 to 255 become numbers from 0 to 1: `ToTensor`.

    Args:
        dtype: What they become.
    """

    dtype: torch.dtype
    random: ClassVar[bool] = False

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """Scale a batch."""
        # By a tensor on the device: by a Python number, a GPU multiplies by the reciprocal, and rounds otherwise.
        return inputs.to(self.dtype).div(constant(255.0, self.dtype, inputs.device))


@dataclass(frozen=True)
class Normalised:
    """Each channel minus a mean, over a standard deviation: `Normalize`.

    Args:
        mean: Of each channel.
        std: Of each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    random: ClassVar[bool] = False

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """Normalise a batch, (samples, channels, height, width)."""
        if not inputs.is_floating_point():
            raise TypeError(f"Normalize takes floating-point inputs, not {inputs.dtype}")
        mean, std = (constant(v, inputs.dtype, inputs.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (inputs - mean).div_(std)


@dataclass(frozen=True)
class Cropped:
    """A part of each image, anywhere in it, after a black border was added: `RandomCrop`.

    Args:
        size: Height and width of the part.
        border: Pixels added on the left, at the top, on the right and at the bottom.
    """

    size: tuple[int, int]
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    random: ClassVar[bool] = True

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """Crop a batch, (samples, channels, height, width), each image at a place of its own."""
        left, top, right, bottom = self.border
        inputs = F.pad(inputs, (left, right, top, bottom))
        samples = torch.arange(len(inputs), device=inputs.device)
        rows, columns = (
            torch.randint(all_there_are - wanted + 1, (len(inputs), 1), device=inputs.device)
            + torch.arange(wanted, device=inputs.device)
            for all_there_are, wanted in zip(inputs.shape[2:], self.size, strict=True)
        )
        found = inputs.movedim(1, 3)[samples[:, None, None], rows[:, :, None], columns[:, None, :]]
        return found.movedim(3, 1).contiguous()


@dataclass(frozen=True)
class Mirrored:
    """Each image or its mirror image: `RandomHorizontalFlip` and `RandomVerticalFlip`.

    Args:
        probability: Of the mirror image.
        dimension: -1: left and right change places; -2: top and bottom.
    """

    probability: float
    dimension: int = -1
    random: ClassVar[bool] = True

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """Mirror some images of a batch, (samples, channels, height, width)."""
        chosen = torch.rand((len(inputs), 1, 1, 1), device=inputs.device) < self.probability
        return torch.where(chosen, inputs.flip(self.dimension), inputs)


def border(padding: int | Sequence[int] | None) -> tuple[int, int, int, int]:
    """Read torchvision's padding, of which there may be one, two or four numbers: left, top, right and bottom."""
    numbers = (0,) if padding is None else (padding,) if isinstance(padding, int) else tuple(padding)
    left, top, right, bottom = numbers * (4 // len(numbers))
    return left, top, right, bottom
