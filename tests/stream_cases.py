"""Small stand-ins for the data sets of streams, and what tests of streams share."""

import torch

from benchmarks import data
from benchmarks.data import ImageData
from benchmarks.streams import StreamSettings, get_benchmark
from plasticity.loading import dataset_tensors

CLASSES = {"mnist": 10, "fashion": 10, "cifar10": 10, "cifar100": 100, "tiny-imagenet": 200}
SHAPES = {"mnist": (1, 28, 28), "fashion": (1, 28, 28), "tiny-imagenet": (3, 64, 64)}
EACH = 3  # training images of a class; one test image


def small_data(name, directory=None):
    """Random images, of which the first pixel tells the class; those of digits are real."""
    if name == "digits":
        return data.load(name)
    classes = CLASSES[name]
    generator = torch.Generator().manual_seed(3)
    parts = []
    for times in (EACH, 1):
        labels = torch.arange(classes).repeat(times)
        shape = (len(labels), *SHAPES.get(name, (3, 32, 32)))
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        pixels[:, 0, 0, 0] = labels
        parts += [pixels, labels]
    return ImageData(*parts)


def use_small_data(monkeypatch):
    """Have streams read the stand-ins."""
    monkeypatch.setattr("benchmarks.streams.builders.load", small_data)


def built(name, **settings):
    """Build a benchmark; returns it and the resolved settings."""
    benchmark = get_benchmark(name)
    resolved = benchmark.resolve(StreamSettings(**settings))
    return benchmark.build(resolved), resolved


def columns(stream):
    """Inputs, labels and task labels of every experience."""
    return [dataset_tensors(experience.dataset) for experience in stream]


def same(one, other):
    """Whether two streams have the same samples, labels and task labels in the same order."""
    pairs = zip(columns(one), columns(other), strict=True)
    return all(torch.equal(a, b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))


def rows_of(inputs, stored):
    """Find each input among the stored ones: its number; fails where there is none, or more than one."""
    equal = (inputs.flatten(1)[:, None] == stored.flatten(1)[None]).all(2)
    assert equal.sum(1).tolist() == [1] * len(inputs)
    return equal.int().argmax(1)
