"""Corruptions of images against slow ones, and the stream of domains that is made with them."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stream_cases import built, columns, rows_of, same, small_data, use_small_data

from benchmarks import data
from benchmarks.data import as_inputs
from benchmarks.streams import StreamSettings
from benchmarks.streams.corrupted import domains
from benchmarks.streams.corruptions import BATCH, CORRUPTIONS, corrupt


def smooth_images(samples=40, size=32, channels=3):
    """Images as smooth as photographs: noise on coarse grids, some of it."""
    generator = torch.Generator().manual_seed(8)
    coarse = torch.rand(samples, channels, 6, 6, generator=generator)
    fine = torch.rand(samples, channels, size, size, generator=generator)
    images = 0.85 * torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1) + 0.15 * fine
    return (255 * images).to(torch.uint8)


IMAGES = smooth_images()


def corrupted(name, severity, images=IMAGES, seed=0):
    return corrupt(name, images, severity, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_severity_grows_and_the_generator_decides(name):
    before = torch.get_rng_state()
    untouched = IMAGES.clone()
    distances = []
    for severity in range(1, 6):
        found = corrupted(name, severity)
        assert found.shape == IMAGES.shape and found.dtype == torch.uint8
        assert torch.equal(found, corrupted(name, severity))
        distances.append(float((found.float() - IMAGES.float()).abs().mean()))
    assert distances[0] > 0 and all(a < b for a, b in zip(distances, distances[1:], strict=False))
    random = name in ("gaussian-noise", "shot-noise", "impulse-noise", "fog")
    assert torch.equal(corrupted(name, 3, seed=1), corrupted(name, 3)) != random
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(untouched, IMAGES)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64)])
def test_other_sizes_and_grey_images(name, shape):
    channels, size, _ = shape
    images = smooth_images(3, size, channels)
    found = corrupted(name, 4, images)
    assert found.shape == images.shape and not torch.equal(found, images)
    assert torch.isfinite(found.float()).all()


def test_large_sets_are_corrupted_batch_by_batch():
    images = IMAGES[torch.arange(BATCH + 7) % 40]
    generator = torch.Generator().manual_seed(0)
    found = corrupt("gaussian-noise", images, 2, generator)
    assert torch.equal(found[:BATCH], corrupt("gaussian-noise", images[:BATCH], 2, torch.Generator().manual_seed(0)))
    assert not torch.equal(found[BATCH:], found[:7])  # the same images, other noise


def test_noise_has_the_size_that_it_should():
    grey = torch.full((60, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, scale in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), start=1):
        values = corrupted("gaussian-noise", severity, grey).double()
        assert abs(values.std() / 255 - scale) < 0.01 * scale + 0.0003 and abs(values.mean() - 128) < 0.3
    for severity, parts in enumerate((500, 250, 100, 75, 50), start=1):
        values = corrupted("shot-noise", severity, grey).double() / 255
        assert abs(values.std() - math.sqrt(128 / 255 / parts)) < 0.02 * math.sqrt(0.5 / parts)
        assert abs(values.mean() - 128 / 255) < 0.002
    for severity, amount in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), start=1):
        values = corrupted("impulse-noise", severity, grey)
        assert set(values.unique().tolist()) == {0, 128, 255}
        for extreme in (0, 255):
            assert abs(float((values == extreme).double().mean()) - amount / 2) < 4 * math.sqrt(
                amount / 2 / grey.numel()
            )


@pytest.mark.parametrize("severity", range(1, 6))
def test_defocus_is_a_mean_over_a_smoothed_disk(severity):
    radius, smooth = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    weights = {}
    for y in range(-4, 5):  # a disk of equal weights, each spread to its neighbours by a normal curve cut off at 1
        for x in range(-4, 5):
            if math.hypot(x, y) <= radius:
                for v in (-1, 0, 1):
                    for u in (-1, 0, 1):
                        spread = math.exp(-(u * u + v * v) / (2 * smooth**2))
                        weights[y + v, x + u] = weights.get((y + v, x + u), 0) + spread
    total = sum(weights.values())
    found = corrupted("defocus-blur", severity, IMAGES[:1])[0]
    padded = np.pad(IMAGES[0].numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect").astype(float)
    for channel, row, column in ((0, 0, 0), (1, 0, 31), (2, 15, 16), (0, 31, 2), (1, 30, 30), (2, 7, 1)):
        expected = sum(w * padded[channel, 4 + row + y, 4 + column + x] for (y, x), w in weights.items()) / total
        assert abs(float(found[channel, row, column]) - expected) <= 0.51


@pytest.mark.parametrize("severity", range(1, 6))
def test_pixelate_is_what_pillow_makes_of_boxes(severity):
    side = int(32 * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    for image, found in zip(IMAGES, corrupted("pixelate", severity), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BOX)
        expected = np.array(picture.resize((32, 32), Image.Resampling.BOX)).transpose(2, 0, 1)
        assert np.abs(found.numpy().astype(int) - expected).max() <= 1  # Pillow rounds in between


@pytest.mark.parametrize("severity", range(1, 6))
def test_brightness_adds_to_the_value_of_hue_saturation_and_value(severity):
    import colorsys

    added = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    images = IMAGES[:2].clone()
    images[0, :, 0, 0] = 0  # black becomes grey
    found = corrupted("brightness", severity, images)
    for sample in range(2):
        for row, column in ((0, 0), (3, 4), (20, 31), (31, 31)):
            hue, saturation, value = colorsys.rgb_to_hsv(*(images[sample, :, row, column] / 255).tolist())
            expected = torch.tensor(colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1))) * 255
            assert (found[sample, :, row, column] - expected).abs().max() <= 0.51


@pytest.mark.parametrize("severity", range(1, 6))
def test_contrast_draws_towards_the_mean_of_a_channel(severity):
    kept = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    found = corrupted("contrast", severity).double()
    for sample in (0, 7):
        for channel in range(3):
            values = IMAGES[sample, channel].double()
            expected = (values - values.mean()) * kept + values.mean()
            assert (found[sample, channel] - expected).abs().max() <= 0.51


@pytest.mark.parametrize("severity", range(1, 6))
def test_jpeg_is_jpeg(severity, tmp_path):
    quality = (80, 65, 58, 50, 40)[severity - 1]
    Image.fromarray(IMAGES[3].permute(1, 2, 0).numpy()).save(tmp_path / "image.jpg", quality=quality)
    expected = np.array(Image.open(tmp_path / "image.jpg")).transpose(2, 0, 1)
    assert np.array_equal(corrupted("jpeg", severity)[3].numpy(), expected)


def test_fog_brightens_smoothly_up_to_the_brightest_value():
    for severity in (1, 5):
        found = corrupted("fog", severity).double()
        assert (found.amax((1, 2, 3)) <= IMAGES.double().amax((1, 2, 3)) + 0.51).all()
    dark = torch.full((30, 3, 32, 32), 100, dtype=torch.uint8)
    found = corrupted("fog", 3, dark).double()
    strength, brightest = 0.75, 100 / 255
    low, high = found.amin((1, 2, 3)), found.amax((1, 2, 3))  # where there is no fog, and where it is thickest
    assert (low - 100 * brightest / (brightest + strength)).abs().max() <= 0.51
    assert (high - 100).abs().max() <= 0.51
    assert torch.equal(found[:, 0], found[:, 1])  # it is grey
    assert (found[:, 0, :, 1:] - found[:, 0, :, :-1]).abs().mean() < 0.15 * (high - low).mean()


@pytest.fixture
def small(monkeypatch):
    use_small_data(monkeypatch)


def test_domains_are_clean_first_and_then_corrupted_one_by_one(small):
    stream, settings = built("cifar10-corruptions", experiences=12)
    stored = small_data("cifar10")
    clean, (x, y, _) = columns(stream.train_stream)[0], columns(stream.test_stream)[0]
    inputs = as_inputs("cifar10", stored.train_x)
    first = rows_of(clean[0], inputs)
    assert len(first) == 24 and torch.equal(clean[1], stored.train_y[first])
    assert torch.equal(x, as_inputs("cifar10", stored.test_x)) and torch.equal(y, stored.test_y)
    rest = [row for row in range(30) if row not in first.tolist()]
    order = domains(settings)
    assert {name for name, _ in order[:9]} == set(CORRUPTIONS) and {severity for _, severity in order[:9]} == {5}
    assert {severity for _, severity in order[9:18]} == {4} and len(order) == 45 == len(set(order))
    labels = columns(stream.train_stream)[1][1]
    assert sorted(labels.tolist()) == sorted(stored.train_y[rest].tolist())
    for index, (name, severity) in enumerate(order[:11], start=1):
        (x, y, tasks), (test_x, test_y, _) = (
            columns([part[index]])[0] for part in (stream.train_stream, stream.test_stream)
        )
        assert torch.equal(y, labels) and torch.equal(test_y, stored.test_y) and not tasks.any()
        if name in ("defocus-blur", "brightness", "contrast", "pixelate", "jpeg"):  # nothing is random
            assert torch.equal(test_x, as_inputs("cifar10", corrupted(name, severity, stored.test_x)))
            expected = as_inputs("cifar10", corrupted(name, severity, stored.train_x[rest]))
            assert sorted(x.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())
        else:
            assert not torch.equal(test_x, as_inputs("cifar10", stored.test_x))
    longer, _ = built("cifar10-corruptions", experiences=14)
    assert same(list(longer.train_stream)[:12], stream.train_stream)
    assert domains(StreamSettings(seed=1)) != order


def test_real_corruptions():
    root = os.environ.get(data.ENVIRONMENT_VARIABLE)
    if not root or not any(
        (Path(root) / folder).is_dir() for folder in ("cifar-10-batches-py", "cifar-10-batches-bin")
    ):
        pytest.skip(f"{data.ENVIRONMENT_VARIABLE} names no folder with cifar10")
    stream, _ = built("cifar10-corruptions", experiences=2)
    assert [len(experience.dataset) for experience in stream.train_stream] == [40_000, 10_000]
    assert [len(experience.dataset) for experience in stream.test_stream] == [10_000, 10_000]
