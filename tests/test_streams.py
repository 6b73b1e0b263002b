"""Streams and the networks that go with them."""

import inspect
import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from avalanche.models import MultiTaskModule
from stream_cases import built, columns, same, use_small_data
from torch import nn

from benchmarks import data, models, streams
from benchmarks.models import build_model, register_model
from benchmarks.streams import Benchmark, StreamSettings, get_benchmark, register_benchmark, stream_shape
from benchmarks.streams.l2_init import SUITE
from plasticity.errors import UserError
from plasticity.loading import dataset_tensors

OWN = set(streams.BENCHMARKS)
"""Without those that studies add when they are imported."""


@pytest.fixture
def images(monkeypatch):
    use_small_data(monkeypatch)


@pytest.mark.parametrize("name", list(streams.BENCHMARKS))
def test_the_seed_and_nothing_else_decides_a_stream(name, images):
    experiences = min(get_benchmark(name).experiences, 4)
    one, _ = built(name, seed=1, experiences=experiences)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again, _ = built(name, seed=1, experiences=experiences)
    other, _ = built(name, seed=2, experiences=experiences)
    assert len(one.train_stream) == len(one.test_stream) == experiences
    assert same(one.train_stream, again.train_stream) and same(one.test_stream, again.test_stream)
    assert torch.equal(before, torch.get_rng_state())
    assert not same(one.train_stream, other.train_stream)


@pytest.mark.parametrize("name", list(streams.BENCHMARKS))
def test_every_stream_has_its_network_and_says_where_it_comes_from(name, images):
    benchmark = get_benchmark(name)
    assert benchmark.source and len(benchmark.summary) <= 110 and "/" not in name
    assert benchmark.scenario in benchmark.scenarios
    for scenario in benchmark.scenarios:
        stream, settings = built(name, scenario=scenario, experiences=2)
        shape = stream_shape(stream, settings)
        network = build_model(benchmark.model, *shape)
        inputs, labels, tasks = dataset_tensors(stream.train_stream[1].dataset)
        assert inputs.dtype == torch.float32 and labels.dtype == torch.int64
        assert set(tasks.tolist()) == {1 if scenario == "task" else 0}
        for experience in (*stream.train_stream, *stream.test_stream):
            assert experience.classes_in_this_experience == sorted(set(experience.dataset.targets))
        output = network.eval()(inputs[:2], *([torch.zeros(2, dtype=torch.int64)] if shape.task_labels else []))
        assert output.shape == (2, shape.num_classes)
    for scenario in set(streams.SCENARIOS) - set(benchmark.scenarios):
        with pytest.raises(UserError, match=f"{re.escape(name)} has no scenario '{scenario}': possible is"):
            built(name, scenario=scenario)


def test_the_page_of_streams_has_them_all():
    page = (Path(__file__).parent.parent / "docs/streams.md").read_text()
    assert [name for name in OWN if not name.startswith("online-") and f"`{name}`" not in page] == []
    named = re.findall(r"`((?:permuted|random-label|split|cifar|l2-init)[-+0-9a-z]*)`", page)
    models_named = {"l2-init-conv"}
    assert set(named) - models_named - OWN == set()


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize(("name", "experiences", "width"), [("split-digits", 5, 2), ("split-cifar100", 20, 5)])
def test_split(name, experiences, width, scenario, images):
    stream, settings = built(name, scenario=scenario, experiences=experiences)
    originals = []
    for part in (stream.train_stream, stream.test_stream):
        seen = []
        assert [experience.current_experience for experience in part] == list(range(experiences))
        for index, experience in enumerate(part):
            inputs, labels, tasks = dataset_tensors(experience.dataset)
            first = index * width if scenario == "class" else 0
            assert labels.unique().tolist() == list(range(first, first + width))
            assert set(tasks.tolist()) == {index if scenario == "task" else 0}
            assert experience.task_label == (index if scenario == "task" else 0)
            assert list(experience.classes_in_this_experience) == labels.unique().tolist()
            assert inputs.dtype == torch.float32
            groups = [inputs[labels == label] for label in labels.unique()]
            if name == "split-cifar100":  # the pixels tell the class
                assert all(len(group[:, 0, 0, 0].unique()) == 1 for group in groups)
                seen += [round(group[0, 0, 0, 0].item(), 4) for group in groups]
        originals.append(seen)
    assert originals[0] == originals[1] and len(set(originals[0])) == len(originals[0])
    shape = stream_shape(stream, settings)
    assert shape.num_classes == (experiences * width if scenario == "class" else width)
    assert shape.task_labels == (scenario == "task")
    assert shape.input_shape == ((64,) if name == "split-digits" else (3, 32, 32))


def test_split_keeps_every_sample():
    stream, _ = built("split-digits")
    whole = data.load("digits")
    assert sum(len(experience.dataset) for experience in stream.train_stream) == 1437
    rows = torch.cat([inputs for inputs, *_ in columns(stream.test_stream)])
    assert sorted(rows.tolist()) == sorted((whole.test_x / 16).tolist())


def test_permuted():
    stream, _ = built("permuted-digits", experiences=4)
    whole = data.as_inputs("digits", data.load("digits").train_x)
    inputs = [x for x, *_ in columns(stream.train_stream)]
    for index, (x, (_, labels, tasks)) in enumerate(zip(inputs, columns(stream.train_stream), strict=True)):
        assert torch.equal(x.sort(dim=1).values, whole.sort(dim=1).values)
        assert torch.equal(labels, data.load("digits").train_y) and not tasks.any()
        assert all(not torch.equal(x, other) for other in [whole, *inputs[:index]])
    longer, _ = built("permuted-digits", experiences=6)
    assert same(list(longer.train_stream)[:4], stream.train_stream)
    # Training and test pixels are permuted alike.
    for x, (y, *_) in zip(inputs, columns(stream.test_stream), strict=True):
        assert torch.corrcoef(torch.stack([x.mean(0), y.mean(0)]))[0, 1] > 0.99


def test_pairs(images):
    stream, settings = built("cifar100-pairs", experiences=7)
    assert settings.scenario == "task" and stream_shape(stream, settings) == (2, (3, 32, 32), True)
    all_of_them, _ = built("cifar100-pairs")
    assert len(all_of_them.train_stream) == 50
    assert same(list(all_of_them.train_stream)[:7], stream.train_stream)
    pixels = [x[:, 0, 0, 0].unique().tolist() for x, *_ in columns(all_of_them.train_stream)]
    assert len({value for pair in pixels for value in pair}) == 100


def test_classes_that_cannot_be_shared_out_equally():
    stream, settings = built("split-digits", experiences=3)
    seen = [sorted(y.unique().tolist()) for _, y, *_ in columns(stream.train_stream)]
    assert seen == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    stream, settings = built("split-digits", experiences=3, scenario="task")
    assert [sorted(y.unique().tolist()) for _, y, *_ in columns(stream.train_stream)] == [
        [0, 1, 2, 3],
        *[[0, 1, 2]] * 2,
    ]
    assert stream_shape(stream, settings).num_classes == 4


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("split-cifar100", {"experiences": 101}, ["100 classes", "101", "1 to 100"]),
        ("split-digits", {"experiences": 10, "scenario": "task"}, ["10", "1 to 5"]),
        ("split-digits", {"experiences": 0}, ["at least 1", "0"]),
        ("permuted-digits", {"experiences": -3}, ["at least 1", "-3"]),
        ("cifar100-pairs", {"experiences": 51}, ["51", "1 to 50"]),
        ("permuted-digits", {"scenario": "class"}, ["'class'", "domain, task"]),
        ("split-digits", {"scenario": "online"}, ["'online'", "class, task, domain"]),
        ("split-mnist", {"experiences": 11}, ["10 classes of mnist", "11", "1 to 10"]),
        ("cifar100-5+1", {"experiences": 33}, ["100 classes", "33", "5 and 1", "1 to 32"]),
        ("cifar100-incremental", {"experiences": 21}, ["100 classes", "21", "5 more", "1 to 20"]),
        ("cifar10-warm-start", {"experiences": 1}, ["at least 2", "10% of cifar10"]),
        ("cifar10-corruptions", {"experiences": 47}, ["45 corrupted domains", "1 to 46"]),
    ],
)
def test_impossible_settings(name, settings, words, images):
    with pytest.raises(UserError) as error:
        built(name, **settings)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_unknown_names():
    with pytest.raises(UserError, match=r"did you mean split-cifar10.*permuted-digits, split-digits"):
        get_benchmark("split-cifar")
    with pytest.raises(UserError, match=r"did you mean pairs-conv.*mlp-3x128, pairs-conv, slim-resnet18"):
        build_model("pair-conv", 2, (3, 32, 32))


def test_a_stream_and_a_model_of_ones_own(monkeypatch):
    monkeypatch.setattr(streams.benchmark, "BENCHMARKS", dict(streams.BENCHMARKS))
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))

    def mine(settings):
        parts = [(torch.rand(6, 4), torch.arange(6) % 3) for _ in range(settings.experiences)]
        return streams.make_stream(parts, parts, settings.scenario)

    register_model("linear", lambda num_classes, input_shape, task_labels: nn.Linear(*input_shape, num_classes))
    benchmark = register_benchmark(Benchmark("mine", "mine", mine, experiences=2, model="linear", scenario="domain"))
    settings = get_benchmark("mine").resolve(StreamSettings())
    shape = stream_shape(benchmark.build(settings), settings)
    assert shape == (3, (4,), False)
    assert build_model("linear", *shape).weight.shape == (3, 4)
    with pytest.raises(UserError, match="'mine'"):
        register_benchmark(benchmark)
    with pytest.raises(UserError, match="'linear'"):
        register_model("linear", nn.Linear)
    digits = Benchmark("x", "x", partial(streams.split_stream, "digits"), experiences=2, model="mlp-3x128")
    assert len(digits.build(StreamSettings()).train_stream) == 2


@pytest.mark.parametrize("task_labels", [False, True])
@pytest.mark.parametrize(
    ("name", "input_shape"),
    [("mlp-3x128", (64,)), ("mlp-3x128", (1, 28, 28)), ("pairs-conv", (3, 32, 32)), ("pairs-conv", (1, 28, 28))]
    + [("slim-resnet18", (3, 32, 32)), ("slim-resnet18", (3, 64, 64)), ("mlp-2x100", (784,)), ("mlp-5x7", (64,))]
    + [("l2-init-conv", (3, 32, 32)), ("l2-init-conv", (1, 28, 28))],
)
def test_models(name, input_shape, task_labels):
    torch.manual_seed(3)
    network = build_model(name, 4, input_shape, task_labels)
    assert isinstance(network, MultiTaskModule) == task_labels
    network.eval()
    inputs = torch.rand(5, *input_shape)
    output = network(inputs, torch.zeros(5, dtype=torch.int64)) if task_labels else network(inputs)
    assert output.shape == (5, 4)
    torch.manual_seed(3)
    again = build_model(name, 4, input_shape, task_labels)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    other = build_model(name, 4, input_shape, task_labels)
    assert not all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_pairs_conv_layers():
    trunk = build_model("pairs-conv", 2, (3, 32, 32), True).trunk
    convolutions = [module for module in trunk if isinstance(module, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size, c.stride) for c in convolutions] == [
        (16, (5, 5), (2, 2)),
        (32, (3, 3), (2, 2)),
        (32, (3, 3), (2, 2)),
    ]
    linear = [module for module in trunk if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(128, 128), (128, 128)]
    build_model("pairs-conv", 2, (1, 17, 17))(torch.rand(1, 1, 17, 17))


def test_layers_of_an_mlp():
    for name, widths in (("mlp-3x128", [128] * 3), ("mlp-2x100", [100] * 2), ("mlp-5x7", [7] * 5)):
        network = build_model(name, 3, (4, 4))
        layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
        sizes = [(layer.in_features, layer.out_features) for layer in layers]
        assert sizes == list(zip([16, *widths], [*widths, 3], strict=True))
        assert sum(isinstance(module, nn.ReLU) for module in network.modules()) == len(widths)
    for name in ("mlp-0x5", "mlp-5x0", "mlp-5", "mlp-2x100x3"):
        with pytest.raises(UserError, match=f"unknown model '{name}'"):
            build_model(name, 3, (4,))


def test_l2_init_conv_layers():
    trunk = build_model("l2-init-conv", 10, (3, 32, 32)).trunk
    assert [type(module).__name__ for module in trunk] == [
        *["Conv2d", "ReLU", "MaxPool2d"] * 2,
        "Flatten",
        *["Linear", "ReLU"] * 2,
    ]
    convolutions = [module for module in trunk if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size, c.stride) for c in convolutions] == [
        (3, 16, (5, 5), (1, 1)),
        (16, 16, (5, 5), (1, 1)),
    ]
    linear = [module for module in trunk if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(400, 100), (100, 100)]
    build_model("l2-init-conv", 2, (1, 16, 16))(torch.rand(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("pairs-conv", (64,)), ("pairs-conv", (3, 16, 32)), ("slim-resnet18", (1, 28, 28)), ("slim-resnet18", (3, 32, 64))]
    + [("slim-resnet18", (3, 48, 48)), ("l2-init-conv", (64,)), ("l2-init-conv", (3, 15, 32))],
)
def test_inputs_that_a_model_cannot_take(name, shape):
    with pytest.raises(UserError, match=name):
        build_model(name, 2, shape)


def test_real_cifar100_pairs():
    root = os.environ.get(data.ENVIRONMENT_VARIABLE)
    if not root or not any((Path(root) / folder).is_dir() for folder in ("cifar-100-python", "cifar-100-binary")):
        pytest.skip(f"{data.ENVIRONMENT_VARIABLE} names no folder with cifar100")
    stream, _ = built("cifar100-pairs", experiences=3)
    for train, test in zip(stream.train_stream, stream.test_stream, strict=True):
        assert dataset_tensors(train.dataset)[1].bincount().tolist() == [500, 500]
        assert dataset_tensors(test.dataset)[1].bincount().tolist() == [100, 100]


def test_the_page_says_what_the_suite_of_l2_init_is(images):
    """Tasks, images, mini-batches, steps and networks, as the table has them and as the streams are."""
    page = (Path(__file__).parents[1] / "docs" / "streams.md").read_text()
    table = page.partition("## The suite of L2 Init")[2].partition("\nThey take")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    for name, row in zip([each.name for each in SUITE], rows[2:], strict=True):
        benchmark = get_benchmark(name)
        tasks, shown, batch, steps, model = row[1:]
        sizes = [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", shown)]
        assert (benchmark.experiences, benchmark.batch_size, benchmark.model) == (
            int(tasks.split(",")[0]),
            int(batch),
            model,
        )
        assert -(-sizes[0] // benchmark.batch_size) * benchmark.epochs == int(steps.split(" ")[0].replace(",", ""))
        arguments = {**_defaults(benchmark.stream), **benchmark.stream.keywords}
        assert arguments.get("samples", sizes[0]) == sizes[0]
        assert (benchmark.scored_every == 2) == ("15 are scored" in tasks)
        if "hard" in arguments:
            assert sizes == [500 * arguments["hard"], 500 * arguments["easy"]]  # CIFAR-100 has 500 of a class


def _defaults(function):
    parameters = inspect.signature(function.func).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def test_the_page_says_what_the_shorter_streams_are():
    page = " ".join((Path(__file__).parents[1] / "docs" / "streams.md").read_text().split())
    assert "the same 1,200 images" in page
    for name in ("random-label-mnist", "random-label-cifar10"):
        assert _defaults(get_benchmark(name).stream)["samples"] == 1200
    assert "only the experiences of five classes are scored" in page and get_benchmark("cifar100-5+1").scored_every == 2
    assert _defaults(get_benchmark("cifar10-warm-start").stream)["first"] == 0.1
    assert "40,000 clean images" in page and _defaults(get_benchmark("cifar10-corruptions").stream)["clean"] == 0.8
    pairs = get_benchmark("cifar100-pairs")
    assert (pairs.experiences, pairs.stream.keywords["classes_each"], pairs.scenario) == (50, 2, "task")
