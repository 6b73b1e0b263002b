"""Streams of the same images: permuted, with random labels, and more and more of them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from stream_cases import built, columns, rows_of, same, small_data, use_small_data

from benchmarks import data
from benchmarks.data import as_inputs
from benchmarks.streams import StreamSettings, permuted_stream, random_label_stream, warm_start_stream


@pytest.fixture
def small(monkeypatch):
    use_small_data(monkeypatch)


def settings(**values):
    return StreamSettings(**{"seed": 4, "experiences": 3, "scenario": "domain", **values})


def test_each_experience_is_permuted_by_one_permutation(small):
    stream = permuted_stream("mnist", settings())
    stored = small_data("mnist")
    train, test = (as_inputs("mnist", x).flatten(1).numpy() for x in (stored.train_x, stored.test_x))
    found = []
    for (x, y, _), (test_x, test_y, _) in zip(columns(stream.train_stream), columns(stream.test_stream), strict=True):
        # Which old pixel is where, read off the columns of the data themselves: the pixels of the stand-in are random.
        old = {column.tobytes(): place for place, column in enumerate(np.concatenate([train, test]).T)}
        new = np.concatenate([x.numpy(), test_x.numpy()]).T
        assert len(old) == 784
        found.append([old[column.tobytes()] for column in new])
        assert sorted(found[-1]) == list(range(784))
        assert torch.equal(y, stored.train_y) and torch.equal(test_y, stored.test_y)
    assert list(range(784)) not in found and len({tuple(order) for order in found}) == 3


def test_permuted_samples_are_drawn_anew_and_test_samples_stay(small):
    stream = permuted_stream("mnist", settings(), samples=20, test_samples=7)
    stored = small_data("mnist")
    whole = permuted_stream("mnist", settings())
    train_rows, test_rows = [], []
    for part, every, rows, labels in (
        (stream.train_stream, whole.train_stream, train_rows, stored.train_y),
        (stream.test_stream, whole.test_stream, test_rows, stored.test_y),
    ):
        for (x, y, _), (permuted, *_) in zip(columns(part), columns(every), strict=True):
            rows.append(rows_of(x, permuted))
            assert torch.equal(y, labels[rows[-1]])
    assert all(len(set(rows.tolist())) == 20 for rows in train_rows)
    assert not torch.equal(train_rows[0].sort().values, train_rows[1].sort().values)
    assert len(set(test_rows[0].tolist())) == 7 and all(torch.equal(rows, test_rows[0]) for rows in test_rows)
    longer = permuted_stream("mnist", settings(experiences=5), samples=20, test_samples=7)
    assert same(list(longer.train_stream)[:3], stream.train_stream)
    assert same(list(longer.test_stream)[:3], stream.test_stream)


def test_random_labels_are_fixed_within_an_experience_and_other_in_the_next(small):
    stream = random_label_stream("cifar10", settings(), samples=25)
    stored = small_data("cifar10")
    inputs = as_inputs("cifar10", stored.train_x)
    assert same(stream.train_stream, stream.test_stream)  # they can only be learnt by heart
    labels = []
    for x, y, _ in columns(stream.train_stream):
        rows = rows_of(x, inputs)
        assert len(set(rows.tolist())) == 25
        assert torch.equal(x, columns(stream.train_stream)[0][0])  # the same images every time
        assert torch.equal(y.bincount(minlength=10), stored.train_y[rows].bincount(minlength=10))
        assert not torch.equal(y, stored.train_y[rows])
        labels.append(y)
    assert all(not torch.equal(a, b) for a, b in zip(labels, labels[1:], strict=False))
    assert same(
        list(random_label_stream("cifar10", settings(experiences=6), samples=25).train_stream)[:3], stream.train_stream
    )


def test_random_labels_have_nothing_to_do_with_the_true_ones(monkeypatch):
    true = torch.arange(10).repeat(500)
    images = torch.zeros(5000, 1, 2, 2, dtype=torch.uint8)
    stored = data.ImageData(images, true, images[:10], true[:10])
    monkeypatch.setattr("benchmarks.streams.builders.load", lambda name, directory: stored)
    stream = random_label_stream("mnist", settings(), samples=5000)
    parts = [
        (part.dataset._flat_data._datasets[0], y)
        for part, (_, y, _) in zip(stream.train_stream, columns(stream.train_stream), strict=True)
    ]
    pairs = [(true[images.rows], y) for images, y in parts] + [(parts[0][1], parts[1][1])]
    for one, other in pairs:
        counts = torch.zeros(10, 10).index_put_((one, other), torch.ones(5000), accumulate=True)
        # Chi squared of a 10x10 table has 81 degrees of freedom, mean 81 and deviation 13.
        assert float(((counts - 50) ** 2 / 50).sum()) < 81 + 5 * 13


def test_a_warm_start_goes_from_a_tenth_to_everything():
    stream = warm_start_stream("digits", settings(experiences=2))
    (few, *_), (everything, *_) = columns(stream.train_stream)
    assert (len(few), len(everything)) == (144, 1437)
    for experience in stream.test_stream:
        assert torch.equal(columns([experience])[0][0], as_inputs("digits", data.load("digits").test_x))


def test_a_warm_start_in_more_steps_is_nested(small):
    stream, chosen = built("cifar10-warm-start", experiences=4)
    assert chosen.scenario == "domain"
    stored = small_data("cifar10")
    inputs = as_inputs("cifar10", stored.train_x)
    before = set()
    for size, (x, y, _) in zip((3, 12, 21, 30), columns(stream.train_stream), strict=True):
        rows = rows_of(x, inputs)
        assert torch.equal(y, stored.train_y[rows])
        assert before < set(rows.tolist()) and len(set(rows.tolist())) == len(rows) == size
        before = set(rows.tolist())
    assert all(len(y) == 10 for _, y, _ in columns(stream.test_stream))
    other = rows_of(columns(built("cifar10-warm-start", seed=1)[0].train_stream)[0][0], inputs)
    assert other.tolist() != rows_of(columns(stream.train_stream)[0][0], inputs).tolist()


@pytest.mark.parametrize(
    ("name", "images", "test"), [("permuted-mnist", 60_000, 2000), ("l2-init-permuted-mnist", 10_000, 1000)]
)
def test_real_permuted_mnist(name, images, test):
    root = os.environ.get(data.ENVIRONMENT_VARIABLE)
    if not root or not (Path(root) / "MNIST").is_dir():
        pytest.skip(f"{data.ENVIRONMENT_VARIABLE} names no folder with mnist")
    stream, _ = built(name, experiences=2)
    for train, tested in zip(stream.train_stream, stream.test_stream, strict=True):
        assert (len(train.dataset), len(tested.dataset)) == (images, test)
    x, y, _ = columns([tested])[0]
    assert x.shape == (test, 784) and len(y.unique()) == 10
