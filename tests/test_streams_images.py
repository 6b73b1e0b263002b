"""Images that become inputs when they are read must be what converting all of them at once gives."""

import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.supervised import Naive
from stream_cases import EACH, built, small_data, use_small_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.data import as_inputs
from benchmarks.evaluating import StreamTensors, experience_samples, experience_tensors
from benchmarks.images import Images
from benchmarks.streams import make_stream
from plasticity.loading import TensorLoaderPlugin, dataset_tensors

STORED = small_data("cifar10")
ROWS = torch.tensor([4, 29, 0, 4, 17])
ORDER = torch.randperm(3072, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rows", [None, ROWS])
@pytest.mark.parametrize("order", [None, ORDER])
def test_any_selection_has_the_same_values(rows, order):
    chosen = torch.arange(30) if rows is None else rows
    images = Images("cifar10", STORED.train_x, STORED.train_y[chosen], rows, order)
    expected = torch.stack([(STORED.train_x[row].float() / 255) for row in chosen])
    mean, std = torch.tensor((0.4914, 0.4822, 0.4465)), torch.tensor((0.2470, 0.2435, 0.2616))
    expected = (expected - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    if order is not None:
        expected = expected.flatten(1)[:, order]
    assert len(images) == len(chosen)
    for index in (None, torch.tensor([3, 1, 3]), torch.tensor([], dtype=torch.int64)):
        inputs, labels = images.select(index)
        picked = torch.arange(len(chosen)) if index is None else index
        assert torch.equal(inputs, expected[picked]) and torch.equal(labels, STORED.train_y[chosen][picked])
        assert inputs.dtype == torch.float32
    for number in range(len(chosen)):
        x, y = images[number]
        assert torch.equal(x, expected[number]) and y == STORED.train_y[chosen[number]]
    batches = list(DataLoader(images, batch_size=2))
    assert torch.equal(torch.cat([x for x, _ in batches]), expected)


def test_data_sets_of_avalanche_are_read_through():
    images = Images("cifar10", STORED.train_x, STORED.train_y)
    tensors = TensorDataset(as_inputs("cifar10", STORED.train_x), STORED.train_y)
    (stream, plain) = (
        make_stream([part], [part], "task").streams["train"][0].dataset for part in (images, tensors.tensors)
    )
    for change in (
        lambda data: data,
        lambda data: data.subset([5, 1, 1, 28]),
        lambda data: data.subset([5, 1, 2]).concat(data.subset([7])).subset([3, 0]),
    ):
        for one, other in zip(dataset_tensors(change(stream)), dataset_tensors(change(plain)), strict=True):
            assert torch.equal(one, other)
    inputs, labels, tasks = dataset_tensors(stream.concat(plain))
    assert torch.equal(inputs[:30], inputs[30:]) and torch.equal(labels[:30], labels[30:]) and len(tasks) == 60


def trained(parts, plugins):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 10))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=7,
        train_epochs=2,
        plugins=plugins,
    )
    for experience in make_stream(parts, parts, "domain").streams["train"]:
        strategy.train(experience)
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("fast", [False, True])
def test_training_is_bit_identical_to_tensors(fast):
    lazy = [Images("cifar10", STORED.train_x, STORED.train_y[rows], rows) for rows in torch.arange(30).split(15)]
    eager = [(as_inputs("cifar10", STORED.train_x)[rows], STORED.train_y[rows]) for rows in torch.arange(30).split(15)]

    def plugins():
        return [ReplayPlugin(mem_size=6), *([TensorLoaderPlugin()] if fast else [])]

    assert torch.equal(trained(lazy, plugins()), trained(eager, plugins()))


def test_stored_images_are_shared_and_converted_no_sooner_than_needed(monkeypatch):
    use_small_data(monkeypatch)
    asked = []
    monkeypatch.setattr(
        "benchmarks.images.as_inputs", lambda name, pixels: (asked.append(len(pixels)), as_inputs(name, pixels))[1]
    )
    stream, _ = built("split-cifar100")
    assert not asked
    experience_tensors(stream.train_stream[3])
    assert asked[-1] == 10 * EACH and sum(asked) <= 10 * EACH + 1  # one of them, to see how large they are


def test_a_few_samples_of_an_experience_are_those_of_all_and_no_others_are_made(monkeypatch):
    use_small_data(monkeypatch)
    stream, _ = built("split-cifar100", scenario="task")
    asked = []
    monkeypatch.setattr(
        "benchmarks.images.as_inputs", lambda name, pixels: (asked.append(len(pixels)), as_inputs(name, pixels))[1]
    )
    few = experience_samples(stream.train_stream[3])
    assert not asked
    first, chosen = few.inputs[:4], few.inputs[torch.tensor([7, 2, 7])]
    assert asked == [4, 3]
    every = experience_tensors(stream.train_stream[3])
    assert torch.equal(first, every.inputs[:4]) and torch.equal(chosen, every.inputs[[7, 2, 7]])
    assert torch.equal(few.targets, every.targets) and torch.equal(few.tasks, every.tasks)


def test_stream_tensors_keep_what_there_is_room_for(monkeypatch):
    use_small_data(monkeypatch)
    stream, _ = built("split-cifar100")
    each = 10 * 3 * 32 * 32 * 4
    tests = StreamTensors(stream.test_stream, room=3 * each + 1)
    assert len(tests) == 10
    for _ in range(2):
        for index in (1, 0, 7, 3):
            inputs, targets, tasks = tests[index]
            expected = experience_tensors(stream.test_stream[index])
            assert all(torch.equal(a, b) for a, b in zip((inputs, targets, tasks), expected, strict=True))
    kept = [tests[index].inputs is tests[index].inputs for index in (1, 0, 7, 3)]
    assert kept == [True, True, True, False]
    assert len(list(tests)) == 10
