"""What a run measures, against a plain loop with Avalanche's own accuracy."""

import math

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from plain_runs import plain_run
from torch import nn

from benchmarks import judging, training
from benchmarks.evaluating import ExperienceTensors
from benchmarks.settings import resolve
from benchmarks.training import train
from strategies import Context, build_plugins


def result(strategy, tmp_path, benchmark="permuted-digits", **settings):
    run = resolve(benchmark, strategy, 0, **{"experiences": 3, "epochs": 1, **settings})
    return train(run, tmp_path / "metrics.jsonl"), run


def slow_accuracies(run):
    """Naive by hand: Avalanche's accuracy on everything, before, between and after, and on each mini-batch."""
    metrics = EvaluationPlugin(accuracy_metrics(experience=True, minibatch=True), loggers=[])
    stream, strategy = plain_run(run, evaluator=metrics)

    def accuracies():
        with torch.random.fork_rng():  # loaders draw random numbers
            found = strategy.eval(stream.test_stream)
        return [value for name, value in found.items() if name.startswith("Top1_Acc_Exp")]

    rows = [accuracies()]
    online = []
    for experience in stream.train_stream:
        strategy.train(experience)
        (name,) = (name for name in metrics.all_metric_results if name.startswith("Top1_Acc_MB"))
        seen = metrics.all_metric_results[name][1]
        online.append(seen[sum(map(len, online)) :])
        rows.append(accuracies())
    return rows, [math.fsum(values) / len(values) for values in online]


def test_accuracies_equal_a_plain_loop(tmp_path):
    found, run = result("naive", tmp_path)
    rows, online = slow_accuracies(run)
    assert found["untrained_accuracy"] == pytest.approx([None, *rows[0][1:]])
    assert found["accuracy_before_learning"] == pytest.approx([None, rows[1][1], rows[2][2]])
    assert found["online_accuracy"] == pytest.approx(online)
    for i in range(3):
        assert found["accuracy_matrix"][i] == pytest.approx(rows[i + 1][: i + 1] + [None] * (2 - i))
    gain = (rows[1][1] - rows[0][1] + rows[2][2] - rows[0][2]) / 2
    assert found["measures"]["forward_transfer"] == pytest.approx(gain) != 0
    assert found["measures"]["average_online_accuracy"] == pytest.approx(sum(online) / 3)
    assert found["measures"]["treated_units"] == 0


@pytest.mark.parametrize(
    ("strategy", "benchmark", "scenario"),
    [
        ("naive", "split-digits", "class"),
        ("naive", "split-digits", "task"),
        ("naive", "permuted-digits", "task"),
        ("fresh", "permuted-digits", "domain"),
    ],
)
def test_nothing_is_known_of_new_classes_and_heads(tmp_path, strategy, benchmark, scenario):
    found, _ = result(strategy, tmp_path, benchmark, scenario=scenario)
    assert found["untrained_accuracy"] == found["accuracy_before_learning"] == [None] * 3
    assert found["measures"]["forward_transfer"] is None
    assert all(0 <= value <= 1 for value in found["online_accuracy"])


def test_classes_that_come_again_are_known():
    class Data:
        def __init__(self, *classes):
            self.targets = self
            self.uniques = set(classes)

    class Experience:
        def __init__(self, task, *classes):
            self.dataset, self.task_labels = Data(*classes), [task]

    class Stream:
        train_stream = [Experience(0, 0, 1), Experience(0, 0, 1, 2), Experience(1, 0, 1), Experience(1, 1)]
        test_stream = train_stream

    assert training._transferable(Stream, heads=False) == [False, False, True, True]
    assert training._transferable(Stream, heads=True) == [False, False, False, True]


def test_what_interventions_did_is_measured(tmp_path):
    found, _ = result("synaptic-stripping", tmp_path, epochs=3)
    first, second = found["treatments"]
    assert found["measures"]["treated_units"] == sum(first["units"].values()) + sum(second["units"].values()) > 0
    # One pass over the test samples of the experiences before, which nothing has changed since.
    assert first["accuracy_before"] == pytest.approx(found["accuracy_matrix"][0][0])
    rows = found["accuracy_matrix"][1]
    assert second["accuracy_before"] == pytest.approx((rows[0] + rows[1]) / 2)
    falls = [entry["accuracy_before"] - entry["accuracy_after"] for entry in (first, second)]
    assert found["measures"]["accuracy_damage"] == pytest.approx(sum(falls) / 2)
    assert found["measures"]["output_shift"] == pytest.approx((first["output_shift"] + second["output_shift"]) / 2)


@pytest.mark.parametrize(
    ("strategy", "counted"),
    [
        ("naive", True),
        ("fresh", True),
        ("redo", True),
        ("shrink-perturb", True),
        ("replay+redo", True),
        ("layer-norm+redo", True),
        ("replay", False),
        ("l2-init", False),
        ("crelu", False),
        ("upgd", False),
        ("upgd+redo", False),
        ("normalize-and-project", False),
    ],
)
def test_for_which_strategies_treated_units_are_counted(strategy, counted):
    plugins = build_plugins(strategy, Context(lambda: nn.Linear(2, 2), 0, 1, 32, 5))
    assert training._counted(strategy, plugins) is counted


def test_a_new_network_changes_all_units(tmp_path):
    found, _ = result("fresh", tmp_path)
    assert found["measures"]["treated_units"] == 2 * 3 * 128
    assert result("fresh+redo:every=20:tau=1", tmp_path)[0]["measures"]["treated_units"] > 2 * 3 * 128


def test_the_probe_has_equally_many_samples_of_each_class():
    targets = torch.tensor([0] * 500 + [1] * 100 + [2] * 10)
    probe, classes = judging.samples(nn.Identity(), ExperienceTensors(torch.arange(610.0), targets, None), 60)
    (inputs,) = zip(*probe.batches, strict=True)
    rows = torch.cat(inputs).long()
    assert torch.bincount(targets[rows]).tolist() == [25, 25, 10] and torch.equal(classes, targets[rows])
    assert rows.unique().numel() == 60 and int(rows[targets[rows] == 0].max()) > 250  # not the first ones
