"""Online streams, and streams of which some experiences are not scored: what is shown, and what is measured."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from stream_cases import built, columns, use_small_data
from torch import nn

from benchmarks import streams
from benchmarks.comparison.measures import run_measures
from benchmarks.comparison.results import read_run
from benchmarks.comparison.validation import check_result
from benchmarks.settings import resolve
from benchmarks.streams import get_benchmark, mini_experiences, online, register_benchmark
from benchmarks.training import train
from strategies import Context, build_plugins, register, registry


@pytest.fixture(autouse=True)
def _small_data(monkeypatch):
    use_small_data(monkeypatch)


@pytest.fixture
def registers(monkeypatch):
    """Registers of benchmarks and strategies that the test may add to."""
    monkeypatch.setattr(streams.benchmark, "BENCHMARKS", dict(streams.BENCHMARKS))
    monkeypatch.setattr(registry, "STRATEGIES", dict(registry.STRATEGIES))


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize("samples", [10, 7, 1000])
def test_mini_experiences_make_up_the_original(samples, scenario):
    stream, _ = built("online-split-digits", scenario=scenario)
    for index, experience in enumerate(stream.train_stream):
        parts = mini_experiences(experience, samples, seed=3)
        size = len(experience.dataset)
        sizes = [len(part.dataset) for part in parts]
        assert sizes == [samples] * (size // samples) + [size % samples] * (size % samples > 0)
        shown = [torch.cat(column) for column in zip(*columns(parts), strict=True)]
        whole = columns([experience])[0]
        assert not torch.equal(shown[0], whole[0])
        rows = [
            sorted(zip(*(c.flatten(1).tolist() if c.ndim > 1 else c.tolist() for c in x), strict=True))
            for x in (shown, whole)
        ]
        assert rows[0] == rows[1]
        assert [part.is_first_subexp for part in parts] == [True] + [False] * (len(parts) - 1)
        assert [part.is_last_subexp for part in parts] == [False] * (len(parts) - 1) + [True]
        for part in parts:
            assert part.access_task_boundaries and part.sub_stream_length == len(parts)
            assert part.current_experience == index and part.origin_stream.name == "train"
            assert part.classes_in_this_experience == experience.classes_in_this_experience
            assert part.previous_classes == experience.previous_classes
            assert part.task_labels == [part.task_label] == [index if scenario == "task" else 0]
    again, other = (mini_experiences(experience, samples, seed=seed) for seed in (3, 4))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(columns(again), columns(parts), strict=True))
    assert not torch.equal(columns(other)[0][0], columns(parts)[0][0])


def test_experiences_are_not_shown_in_the_same_order():
    stream, _ = built("online-permuted-digits", experiences=2)
    labels = [torch.cat([y for _, y, _ in columns(mini_experiences(e, 10, 0))]) for e in stream.train_stream]
    assert torch.equal(*(y for _, y, _ in columns(stream.train_stream))) and not torch.equal(*labels)


def test_online_benchmarks_are_others_shown_a_few_samples_at_a_time():
    for name in ("split-digits", "permuted-digits", "split-mnist", "split-cifar10", "split-cifar100", "cifar100-pairs"):
        whole, shown = get_benchmark(name), get_benchmark(f"online-{name}")
        assert shown.stream is whole.stream and shown.model == whole.model and shown.scenarios == whole.scenarios
        assert (shown.online, shown.batch_size, shown.epochs) == (10, 10, 1) and whole.online is None
    assert online(whole, 3).online == online(whole, 3).batch_size == 3


def run(tmp_path, benchmark, strategy="naive", **settings):
    return train(resolve(benchmark, strategy, 0, **settings), tmp_path / "metrics.jsonl")


@pytest.fixture
def few(registers):
    """Another online benchmark, of 30 images, 2 at a time."""
    return register_benchmark(replace(online(get_benchmark("split-mnist"), 2), name="few")).name


class Seen(SupervisedPlugin):
    """Keeps what a strategy is shown."""

    def __init__(self):
        super().__init__()
        self.batches, self.parts, self.weights = [], [], []

    def before_training_exp(self, strategy, **kwargs):
        self.parts.append((strategy.experience.current_experience, len(strategy.experience.dataset)))

    def before_training_iteration(self, strategy, **kwargs):
        self.batches.append((strategy.experience.current_experience, strategy.mb_x.clone(), strategy.mb_y.clone()))
        self.weights.append(next(strategy.model.parameters()).detach().clone())


def test_an_online_run_sees_every_sample_once_and_is_measured_after_whole_experiences(registers, tmp_path):
    seen = Seen()
    register("seen", lambda context: [seen])
    result = run(tmp_path, "online-split-digits", "seen", experiences=3)
    stream, _ = built("online-split-digits", experiences=3)
    assert np.shape(result["accuracy_matrix"]) == (3, 3) and len(result["units"]) == len(result["online_accuracy"]) == 3
    sizes = [len(experience.dataset) for experience in stream.train_stream]
    expected = [
        (i, 10 if start + 10 <= size else size - start) for i, size in enumerate(sizes) for start in range(0, size, 10)
    ]
    assert seen.parts == expected
    assert [(experience, len(y)) for experience, _, y in seen.batches] == expected
    for index, (inputs, labels, _) in enumerate(columns(stream.train_stream)):
        shown = [(x, y) for experience, x, y in seen.batches if experience == index]
        x, y = (torch.cat(column) for column in zip(*shown, strict=True))
        assert sorted(zip(x.tolist(), y.tolist(), strict=True)) == sorted(
            zip(inputs.tolist(), labels.tolist(), strict=True)
        )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["name"] for line in lines if line["name"].startswith("Top1_Acc_Exp")} == {
        f"Top1_Acc_Exp/eval_phase/test_stream/Exp{index:03d}" for index in range(3)
    }


def test_epochs_and_batch_size_of_an_online_run(registers, tmp_path):
    seen = Seen()
    register("seen", lambda context: [seen])
    run(tmp_path, "online-split-mnist", "seen", experiences=1, epochs=2, batch_size=4)
    assert [len(y) for _, _, y in seen.batches] == [4, 4, 2] * 6
    first = [torch.cat([x for _, x, _ in seen.batches[start : start + 3]]) for start in (0, 3)]
    assert sorted(first[0].tolist()) == sorted(first[1].tolist())


def test_a_fresh_network_comes_with_each_experience_and_not_with_each_few_samples(few, tmp_path):
    seen = Seen()
    register("seen", lambda context: [seen])
    run(tmp_path, few, "fresh+seen", experiences=3)
    jumps = [float((b - a).abs().max()) for a, b in zip(seen.weights, seen.weights[1:], strict=False)]
    first = [index for index, (a, b) in enumerate(zip(seen.batches, seen.batches[1:], strict=False)) if a[0] != b[0]]
    assert len(first) == 2 and len(seen.batches) == 6 + 5 + 5
    assert [index for index, jump in enumerate(jumps) if jump > 0.05] == first  # Adam goes 0.001 at a time
    result = run(tmp_path, few, "fresh", experiences=3)
    assert result["accuracy_matrix"][1][0] is None and None not in result["accuracy_matrix"][2]


def test_treatments_of_an_online_run_belong_to_experiences(few, tmp_path):
    result = run(tmp_path, few, "synaptic-stripping+shrink-perturb", experiences=4)
    assert len(result["treatments"]) == 6
    for stripping in (True, False):
        entries = [entry for entry in result["treatments"] if (entry["method"] == "synaptic-stripping") == stripping]
        assert [entry["experience"] for entry in entries] == [1, 2, 3]


def test_replay_of_an_online_run_keeps_samples_of_all_experiences(registers, tmp_path):
    kept = []

    def replay(context):
        kept.extend(build_plugins("replay:mem_size=60", context))
        return kept

    register("kept", replay)
    run(tmp_path, "online-split-digits", "kept", experiences=5)
    (plugin,) = kept
    labels = torch.as_tensor(list(plugin.storage_policy.buffer.targets))
    counts = torch.bincount(labels // 2, minlength=5)
    assert len(labels) == 60 and counts.min() >= 4  # 12 of each expected, with a deviation of 3
    context = Context(nn.Identity, 0, 1, 8, 2)
    assert type(build_plugins("replay", context)[0].storage_policy).__name__ == "ExperienceBalancedBuffer"


@pytest.mark.parametrize("strategy", ["naive", "fresh"])
@pytest.mark.parametrize("experiences", [4, 5])
def test_only_scored_experiences_count(strategy, experiences, registers, tmp_path):
    half = replace(get_benchmark("permuted-digits"), name="half", scored_every=2)
    register_benchmark(half)
    result = run(tmp_path, "half", strategy, experiences=experiences, epochs=1)
    scored = result["scored"]
    assert scored == list(range(0, experiences, 2))
    matrix = np.array(result["accuracy_matrix"], dtype=float)
    expected = run_measures([[matrix[i, j] for j in scored] for i in scored], strategy == "fresh")
    assert {name: result["measures"][name] for name in expected} == expected
    assert result["measures"]["learning_accuracy"] == pytest.approx(np.mean([matrix[i, i] for i in scored]))
    assert result["measures"]["average_online_accuracy"] == pytest.approx(
        np.mean([result["online_accuracy"][i] for i in scored])
    )
    whole = run(tmp_path, "permuted-digits", strategy, experiences=experiences, epochs=1)
    assert whole["scored"] == list(range(experiences))
    assert whole["learning_accuracy"] == result["learning_accuracy"]  # all are measured
    assert whole["measures"]["learning_accuracy"] != result["measures"]["learning_accuracy"]
    check_result(json.loads(json.dumps(result)), strategy == "fresh")
    for wrong in ([], [0, experiences], [2, 0], [0, 0], "all", [0, 1.5]):
        with pytest.raises(ValueError, match="scored"):
            check_result({**result, "scored": wrong}, strategy == "fresh")


def test_a_run_that_is_read_has_the_scored_experiences(registers, tmp_path):
    register_benchmark(replace(get_benchmark("permuted-digits"), name="half", scored_every=2))
    settings = resolve("half", "naive", 0, experiences=3, epochs=1)
    folder = tmp_path / settings.folder
    folder.mkdir(parents=True)
    result = train(settings, folder / "metrics.jsonl")
    (folder / "config.json").write_text(json.dumps(settings.config()))
    (folder / "result.json").write_text(json.dumps(result))
    found = read_run(folder)
    matrix = np.array(result["accuracy_matrix"], dtype=float)
    assert np.array_equal(found.accuracy_matrix, matrix[np.ix_([0, 2], [0, 2])], equal_nan=True)
    assert found.online_accuracy.tolist() == [result["online_accuracy"][0], result["online_accuracy"][2]]


def test_hard_experiences_of_5_plus_1_are_scored(tmp_path):
    result = run(tmp_path, "l2-init-5+1-cifar", experiences=4, epochs=1)
    assert result["scored"] == [0, 2] and result["experiences"] == 4
    assert get_benchmark("cifar100-5+1").scored_every == get_benchmark("l2-init-5+1-cifar").scored_every == 2
