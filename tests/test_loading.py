"""Mini-batches from tensors must be those of Avalanche's own loader, and evaluation must leave no trace."""

import warnings
from functools import partial

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TaskLabels, make_avalanche_dataset
from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_tensor_classification_dataset, lookup
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import MTSimpleMLP
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.supervised import Cumulative, Naive
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_collate

from benchmarks.evaluating import ExperienceTensors, evaluate, experience_tensors
from benchmarks.models import build_model
from benchmarks.streams import StreamSettings, get_benchmark, make_stream, stream_shape
from plasticity.loading import NotTensorsError, TensorLoaderPlugin, dataset_tensors
from plasticity.loading.loader import TensorLoader


class Recorder(SupervisedPlugin):
    """Keeps every mini-batch and the kind of every loader."""

    def __init__(self):
        super().__init__()
        self.batches, self.loaders = [], []

    def before_training_iteration(self, strategy, **kwargs):
        assert type(strategy.mbatch) is list
        self.batches.append([column.clone() for column in strategy.mbatch])

    def after_training_epoch(self, strategy, **kwargs):
        self.loaders.append(type(strategy.dataloader))


def parts(sizes, features=6, classes=3, seed=0):
    """Random samples, each with a first feature that no other has."""
    generator = torch.Generator().manual_seed(seed)
    found, start = [], 0
    for size in sizes:
        inputs = torch.rand(size, features, generator=generator)
        inputs[:, 0] = torch.arange(start, start + size)
        found.append((inputs, torch.randint(0, classes, (size,), generator=generator)))
        start += size
    return found


def train(stream, extra, *, strategy=Naive, model=None, epochs=2, batch_size=8, before=(), **kwargs):
    """Train on a stream with `extra` plugins; returns what was recorded, the weights and the random state."""
    torch.manual_seed(5)
    model = model() if model else nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 9))
    recorder = Recorder()
    trained = strategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch_size,
        train_epochs=epochs,
        plugins=[*extra, *(make() for make in before), recorder],
        evaluator=EvaluationPlugin(),
    )
    for experience in stream:
        trained.train(experience, **kwargs)
    return recorder, trained.model.state_dict(), torch.get_rng_state()


def assert_equal_runs(one, other):
    assert len(one[0].batches) == len(other[0].batches)
    for mine, theirs in zip(one[0].batches, other[0].batches, strict=True):
        assert [c.dtype for c in mine] == [c.dtype for c in theirs]
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][key], other[1][key]) for key in one[1])
    assert torch.equal(one[2], other[2])


def two_tasks():
    """Every experience has samples of two tasks, one with more than the other."""
    sets = []
    for inputs, labels in parts([21, 30]):
        tasks = (torch.arange(len(labels)) % 3 == 0).long().tolist()
        attributes = [DataAttribute(labels.tolist(), "targets"), TaskLabels(tasks)]
        sets.append(AvalancheDataset([TensorDataset(inputs, labels)], data_attributes=attributes))
    return with_task_labels(benchmark_from_datasets(train=sets)).streams["train"]


def without_task_labels():
    sets = [
        make_avalanche_dataset(TensorDataset(*part), data_attributes=[DataAttribute(part[1].tolist(), "targets")])
        for part in parts([21, 30])
    ]
    return benchmark_from_datasets(train=sets).streams["train"]


def renumbered():
    (inputs, labels), (test, test_labels) = parts([60, 20], classes=6)
    return nc_benchmark(
        _make_taskaware_tensor_classification_dataset(inputs, labels),
        _make_taskaware_tensor_classification_dataset(test, test_labels),
        n_experiences=3,
        task_labels=False,
        seed=1,
        class_ids_from_zero_in_each_exp=True,
    ).train_stream


def domain(sizes=(21, 30, 13)):
    streams = parts(sizes)
    return make_stream(streams, streams, "domain").streams["train"]


def tasks(sizes=(21, 30, 13)):
    streams = parts(sizes)
    return make_stream(streams, streams, "task").streams["train"]


replay = partial(ReplayPlugin, mem_size=12)
CASES = {
    "one task": (domain, {}),
    "drop_last": (domain, {"drop_last": True}),
    "not shuffled": (domain, {"shuffle": False}),
    "a head each": (tasks, {"model": partial(MTSimpleMLP, input_size=6, hidden_size=8)}),
    "two tasks in an experience": (two_tasks, {}),
    "no task labels": (without_task_labels, {}),
    "classes renumbered": (renumbered, {}),
    "replay": (domain, {"before": [replay]}),
    "replay, small memory batch": (domain, {"before": [partial(replay, batch_size=5, batch_size_mem=3)]}),
    "replay, balanced": (tasks, {"before": [partial(replay, task_balanced_dataloader=True)]}),
    "replay, classes renumbered": (renumbered, {"before": [replay]}),
    "replay, drop_last": (domain, {"before": [replay], "drop_last": True}),
    "cumulative": (tasks, {"strategy": Cumulative}),
}


@pytest.mark.parametrize("case", CASES)
def test_mini_batches_weights_and_random_state_are_those_of_avalanches_loader(case):
    make, options = CASES[case]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quick = train(make(), [TensorLoaderPlugin()], **options)
    assert not [w for w in caught if "TensorLoaderPlugin" in str(w.message)]
    assert set(quick[0].loaders) == {TensorLoader}
    assert_equal_runs(quick, train(make(), [], **options))


def test_each_sample_once_an_epoch_with_its_labels():
    streams = parts([21, 30])
    stream = make_stream(streams, streams, "task").streams["train"]
    batches = train(stream, [TensorLoaderPlugin()], model=partial(MTSimpleMLP, 6, 8), epochs=3)[0].batches
    assert [len(batch[0]) for batch in batches[:3]] == [8, 8, 5]
    inputs, labels, numbers = (torch.cat(column) for column in zip(*batches, strict=True))
    orders = []
    for index, (first, last) in enumerate([(0, 63), (63, 153)]):
        for epoch in inputs[first:last].split(len(streams[index][0])):
            order = epoch[:, 0].argsort()
            assert torch.equal(epoch[order], streams[index][0])
            orders.append(order.tolist())
        known = dict(zip(streams[index][0][:, 0].tolist(), streams[index][1].tolist(), strict=True))
        assert [known[key] for key in inputs[first:last, 0].tolist()] == labels[first:last].tolist()
        assert set(numbers[first:last].tolist()) == {index}
    assert len({tuple(order) for order in orders}) == 6


def test_replay_mixes_new_and_remembered_samples():
    batches = train(domain((24, 24)), [TensorLoaderPlugin()], before=[replay], epochs=2)[0].batches
    assert [len(batch[0]) for batch in batches[:6]] == [8] * 6
    for x, _, _ in batches[6:]:
        assert (x[:, 0] >= 24).sum() == 8 and 4 <= (x[:, 0] < 24).sum() <= 8  # 12 are remembered: 8, 4, 8, 4 ...
    remembered = {value for x, _, _ in batches[6:] for value in x[x[:, 0] < 24, 0].tolist()}
    assert len(remembered) == 12


@pytest.mark.parametrize("position", ["first", "last"])
def test_the_place_among_the_plugins_does_not_matter(position):
    mine, other = TensorLoaderPlugin(), replay()
    plugins = [mine, other] if position == "first" else [other, mine]
    run = train(domain(), plugins)
    assert set(run[0].loaders) == {TensorLoader}
    assert_equal_runs(run, train(domain(), [replay()]))


def flipped(x):
    return -x if torch.rand(()) < 0.5 else x


def with_transformation():
    sets = [
        _make_taskaware_tensor_classification_dataset(*part, transform_groups={"train": (flipped, None), "eval": None})
        for part in parts([21, 30])
    ]
    return with_task_labels(benchmark_from_datasets(train=sets)).streams["train"]


def test_transformed_samples_keep_avalanches_loader_and_it_says_so_once():
    with pytest.warns(UserWarning, match="leaves Avalanche's loader in place") as caught:
        run = train(with_transformation(), [TensorLoaderPlugin()])
    assert len([w for w in caught if "TensorLoaderPlugin" in str(w.message)]) == 1
    assert TensorLoader not in run[0].loaders
    assert_equal_runs(run, train(with_transformation(), []))


class Doubling(TensorDataset):
    """A user's own, which does more than index."""

    def __getitem__(self, index):
        return tuple(2 * element for element in super().__getitem__(index))


class Listed(Dataset):
    """A user's own."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.rand(2), index


@pytest.mark.parametrize(
    "dataset",
    [
        Doubling(*parts([9])[0]),
        Listed(),
        with_transformation()[0].dataset,
        ConcatDataset([TensorDataset(torch.rand(3, 2)), TensorDataset(torch.rand(3, 4))]),
        make_avalanche_dataset(
            TensorDataset(*parts([9])[0]), data_attributes=[DataAttribute(["word"] * 9, "name", use_in_getitem=True)]
        ),
        make_avalanche_dataset(
            TensorDataset(*parts([9])[0]), transform_groups={"train": (partial(lookup, {}), None), "eval": None}
        ),
    ],
    ids=["subclass", "class of its own", "transformation", "shapes differ", "words", "lookup of inputs"],
)
def test_what_cannot_be_had_as_tensors(dataset):
    with pytest.raises(NotTensorsError):
        dataset_tensors(dataset)


def test_a_collate_function_or_loader_of_ones_own_is_left():
    dataset = TensorDataset(*parts([9])[0])
    with pytest.raises(NotTensorsError, match="collate"):
        TensorLoader(DataLoader(dataset, collate_fn=lambda batch: batch), "cpu")
    with pytest.raises(NotTensorsError, match="loader is a list"):
        TensorLoader([1, 2], "cpu")
    with pytest.raises(NotTensorsError):
        TensorLoader(DataLoader(dataset, batch_size=None), "cpu")


def trees():
    one, two, three = (TensorDataset(*part) for part in parts([9, 5, 7]))
    base = make_avalanche_dataset(one, data_attributes=[TaskLabels(list(range(9)))])
    more = make_avalanche_dataset(two, data_attributes=[TaskLabels([7] * 5)])
    numbers = _make_taskaware_tensor_classification_dataset(*parts([9])[0], task_labels=4)
    mapped = AvalancheDataset(
        [numbers], frozen_transform_groups={"train": (None, partial(lookup, [5, 3, 8])), "eval": (None, None)}
    )
    yield "a leaf", one
    yield "subset", Subset(one, [3, 1, 1, 8])
    yield "subset of a concatenation", Subset(ConcatDataset([one, two, three]), [20, 0, 13, 9, 9, 2])
    yield "concatenation of subsets", ConcatDataset([Subset(one, [4]), two, Subset(three, [6, 0])])
    yield "avalanche", base
    yield "avalanche subset", base.subset([5, 2, 2, 0]).subset([3, 0, 1])
    yield "avalanche concatenation", base.concat(more).subset([13, 0, 8, 9, 4])
    yield "twice the same", base.concat(base)
    yield "the same and another", base.subset([1, 2]).concat(more).concat(base.subset([8, 1]))
    yield "labels as numbers", numbers.subset([2, 0])
    yield "renumbered", mapped
    yield "renumbered, subset", mapped.subset([7, 3, 3]).concat(mapped)
    yield "not renumbered in eval", mapped.eval()
    above = AvalancheDataset([mapped], transform_groups={"train": (None, None), "eval": (None, None)})
    yield "renumbered below", above
    yield "not renumbered below in eval", above.eval()
    yield "subset in between", make_avalanche_dataset(Subset(one, [8, 2, 0, 5])).subset([3, 3, 1])
    yield "subset of an avalanche subset", Subset(base.subset([5, 2, 0, 7]), [3, 1, 3])
    yield "avalanche below", make_avalanche_dataset(Subset(base.concat(more), [12, 3, 9])).subset([2, 0])


@pytest.mark.parametrize("tree", [pytest.param(tree, id=name) for name, tree in trees()])
def test_tensors_are_what_collating_gives(tree):
    expected = default_collate([tree[index] for index in range(len(tree))])
    found = dataset_tensors(tree)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_no_samples_are_refused():
    with pytest.raises(NotTensorsError):
        dataset_tensors(AvalancheDataset([]))


class WithBatchNorm(nn.Module):
    """Has a frozen BatchNorm layer, dropout, and a count of its forward passes."""

    def __init__(self):
        super().__init__()
        self.norm, self.frozen, self.out = nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.frozen.eval()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.out(torch.dropout(self.frozen(self.norm(x)), 0.5, self.training))


def test_evaluation_is_right_and_leaves_no_trace():
    torch.manual_seed(0)
    model = WithBatchNorm()
    model(torch.rand(30, 6))
    inputs, targets = torch.rand(50, 6), torch.randint(0, 3, (50,))
    expected = WithBatchNorm().eval()
    expected.load_state_dict(model.state_dict())
    right = sum(int(expected(x[None]).argmax()) == int(y) for x, y in zip(inputs, targets, strict=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random, model.sizes = torch.get_rng_state(), []
    found = evaluate(model, ExperienceTensors(inputs, targets, None), batch_size=16)
    assert found == right / 50 and 0 < right < 50
    assert model.sizes == [16, 16, 16, 2]
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [m.training for m in (model, model.norm, model.frozen, model.out)] == [True, True, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())

    def fail(x):
        raise RuntimeError("in the middle")

    model.forward = fail
    with pytest.raises(RuntimeError):
        evaluate(model, ExperienceTensors(inputs, targets, None))
    assert model.norm.training and not model.frozen.training
    with pytest.raises(ValueError, match="without samples"):
        evaluate(model, ExperienceTensors(inputs[:0], targets[:0], None))


def test_evaluation_uses_the_head_of_each_task_and_agrees_with_avalanche():
    benchmark = get_benchmark("split-digits")
    settings = benchmark.resolve(StreamSettings(scenario="task"))
    stream = benchmark.build(settings)
    torch.manual_seed(0)
    model = build_model(benchmark.model, *stream_shape(stream, settings))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=1,
        plugins=[TensorLoaderPlugin()],
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True)),
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    mine = [evaluate(strategy.model, experience_tensors(experience)) for experience in stream.test_stream]
    metrics = strategy.eval(stream.test_stream)
    theirs = [value for name, value in sorted(metrics.items()) if name.startswith("Top1_Acc_Exp/eval_phase")]
    assert mine == pytest.approx(theirs) and len(set(mine)) > 1 and mine[-1] > 0.9


def halved(x):
    return x / 2


def test_experience_tensors_apply_the_transformations_of_evaluation():
    (inputs, labels), *_ = parts([21])
    dataset = _make_taskaware_tensor_classification_dataset(
        inputs, labels, transform_groups={"train": (flipped, None), "eval": (halved, None)}
    )
    stream = benchmark_from_datasets(test=[dataset])
    found = experience_tensors(with_task_labels(stream).streams["test"][0])
    assert torch.equal(found.inputs, inputs / 2) and torch.equal(found.targets, labels)
    assert found.tasks is not None and not found.tasks.any()
    assert experience_tensors(stream.streams["test"][0]).tasks is None
    assert experience_tensors(without_task_labels()[0]).tasks is None


def test_the_bare_loop_learns_what_naive_learns():
    from benchmarks.bare_loop import bare_loop

    seconds, late = bare_loop("split-digits", experiences=5)
    assert seconds > 0 and late > 0.9
