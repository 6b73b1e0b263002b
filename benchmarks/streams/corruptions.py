"""Corruptions of images in the style of CIFAR-10-C, for whole batches.

Kinds and severities are those of Hendrycks & Dietterich 2019 for images of 32x32 pixels, where they do not need
pictures or libraries of their own. Two things differ: fog is made of smooth noise on grids of 1, 2, 4, … cells instead
of by the diamond-square algorithm, and values are rounded to whole numbers, not cut off.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = 1000  # images at a time; part of what a seed means
Corruption = Callable[[Tensor, int, torch.Generator], Tensor]


def corrupt(name: str, pixels: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Corrupt images.

    Args:
        name: One of `CORRUPTIONS`.
        pixels: uint8, (samples, channels, height, width).
        severity: From 1 to 5.
        generator: Where random numbers come from; the same ones are drawn for every severity where that makes sense.

    Returns:
        uint8, of the same shape.
    """
    found = torch.empty_like(pixels)
    for start in range(0, len(pixels), BATCH):
        rows = slice(start, start + BATCH)
        images = CORRUPTIONS[name](pixels[rows].float().div_(255), severity, generator)
        found[rows] = images.clamp(0, 1).mul(255).round_().to(torch.uint8)
    return found


def gaussian_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Normal noise of its own for every value."""
    scale = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return images + scale * torch.randn(images.shape, generator=generator)


def shot_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Poisson noise: light arrives in few parts."""
    parts = (500, 250, 100, 75, 50)[severity - 1]
    return torch.poisson(images * parts, generator=generator) / parts


def impulse_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Single values become 0 or 1."""
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    drawn = torch.rand(images.shape, generator=generator)
    return images.masked_fill(drawn < amount / 2, 0).masked_fill(drawn > 1 - amount / 2, 1)


def defocus_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Each pixel becomes the mean over a disk, whose edge is smoothed."""
    radius, smooth = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    reach = math.floor(radius) + 1  # one more for the smoothed edge
    line = torch.arange(-reach, reach + 1)
    disk = (line.square()[:, None] + line.square() <= radius**2).float()
    edge = torch.exp(-torch.arange(-1, 2).square() / (2 * smooth**2))
    kernel = F.conv2d((disk / disk.sum())[None, None], torch.outer(edge, edge)[None, None] / edge.sum() ** 2, padding=1)
    channels = images.shape[1]
    padded = F.pad(images, [reach] * 4, mode="reflect")
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


def fog(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Smooth noise brightens the image, whose brightest value stays where it was."""
    strength, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    samples, _, *size = images.shape
    cloud = torch.zeros(samples, 1, *size)
    for octave in range(int(math.log2(min(size))) + 1):
        grid = torch.rand(samples, 1, 2**octave + 1, 2**octave + 1, generator=generator)
        cloud += F.interpolate(grid, size, mode="bilinear", align_corners=True) / decay**octave
    low, high = cloud.amin((1, 2, 3), keepdim=True), cloud.amax((1, 2, 3), keepdim=True)
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + strength * (cloud - low) / (high - low)) * brightest / (brightest + strength)


def brightness(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Add to the largest channel of each pixel, and keep hue and saturation."""
    added = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    value = images.amax(1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, images * brighter / value.clamp(min=1e-6), brighter)


def contrast(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Draw each channel of an image towards its mean."""
    kept = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = images.mean((2, 3), keepdim=True)
    return mean + kept * (images - mean)


def pixelate(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Make an image smaller, and large again, each value the mean of those in its place."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    height, width = images.shape[2:]
    for size in ((int(height * share), int(width * share)), (height, width)):
        down, across = (_box(old, new) for old, new in zip(images.shape[2:], size, strict=True))
        images = down @ images @ across.T
    return images


def _box(old: int, new: int) -> Tensor:
    """Weights, (new, old), by which a line of values becomes one of another length.

    A value is the mean of those whose centres lie below it; where it covers none, it is the one that it lies in.
    """
    scale = old / new
    reach = max(scale, 1) / 2
    centres = (torch.arange(new, dtype=torch.float64) + 0.5)[:, None] * scale
    distance = torch.arange(old) + 0.5 - centres
    weights = ((distance > -reach) & (distance <= reach)).double()
    return (weights / weights.sum(1, keepdim=True)).float()


def jpeg(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Compress by JPEG, of a quality of 80 down to 40, one image at a time."""
    from PIL import Image

    quality = (80, 65, 58, 50, 40)[severity - 1]
    pixels = images.mul(255).round_().to(torch.uint8).permute(0, 2, 3, 1).numpy()  # channels last
    found = np.empty_like(pixels)
    for row, image in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)  # grey images have no channels there
        found[row] = np.asarray(Image.open(file)).reshape(image.shape)
    return torch.from_numpy(found).permute(0, 3, 1, 2).float().div_(255)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": gaussian_noise,
    "shot-noise": shot_noise,
    "impulse-noise": impulse_noise,
    "defocus-blur": defocus_blur,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "pixelate": pixelate,
    "jpeg": jpeg,
}
