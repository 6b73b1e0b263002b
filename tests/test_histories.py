"""What plugins report can be taken out of memory: they go on as before, and the file has all of it, in order."""

import copy
import json
import math
import pickle

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from metric_cases import mlp, naive, stream

from benchmarks.cost.long_runs import living
from plasticity import UserError, plugins
from plasticity.metrics import HistoryLogger, JSONLinesLogger, plasticity_metrics

MAKE = {
    "redo": lambda: plugins.ReDoPlugin(every=3),
    "stepwise": lambda: plugins.ContinualBackpropPlugin(replacement_rate=0.2, maturity=1),
    "injection": plugins.PlasticityInjectionPlugin,
    "self-labels": lambda: plugins.HyperHypoPlugin(mode="prune", percent=10, self_label="all"),
    "dry": lambda: plugins.ReDoPlugin(every=3, dry_run=True),
    "pruning": plugins.DemonPruningPlugin,
    "noise": lambda: plugins.ShrinkPerturbPlugin(variant="step"),
    "steps": lambda: plugins.HareTortoisePlugin(reset_every=2),
    "adaptive": lambda: plugins.AdaptivePlugin(dead=0.01),
}


def trained(make, benchmark, *loggers, parts=None):
    """Train on a stream; returns the plugin and the weights."""
    plugin, model = make(), mlp()
    torch.manual_seed(0)
    strategy = naive(model, [], plugins=[plugin], loggers=list(loggers))
    for experience in benchmark.train_stream:
        strategy.train(experience if parts is None else parts(experience))
    return plugin, list(strategy.model.state_dict().values())


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", MAKE)
def test_a_plugin_whose_history_is_taken_does_the_same(name, tmp_path):
    benchmark = stream(3)
    whole, expected = trained(MAKE[name], benchmark)
    plugin, found = trained(MAKE[name], benchmark, HistoryLogger(tmp_path / "deep" / "history.jsonl"))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert whole.history and plugin.history == [] and plugin.reported == whole.reported == len(whole.history)
    kind = type(plugin).__name__
    written = lines(tmp_path / "deep" / "history.jsonl")
    assert written == json.loads(json.dumps([{"plugin": kind, **entry} for entry in whole.history]))


@pytest.mark.parametrize("name", ["redo", "injection", "stepwise", "steps"])
def test_how_much_was_reported_is_part_of_the_state(name, tmp_path):
    plugin, _ = trained(MAKE[name], stream(3), HistoryLogger(tmp_path / "history.jsonl"))
    other = MAKE[name]()
    other.load_state_dict(copy.deepcopy(plugin.state_dict()))
    assert other.history == [] and other.reported == plugin.reported > 0
    before = {key: value for key, value in plugin.state_dict().items() if key not in ("reported", "given")}
    other.load_state_dict({**before, "history": [{"experience": 1}]})  # as it was saved before this was counted
    assert other.reported == 1
    if name == "injection":
        assert other._given and plugin._given


def test_an_online_experience_is_written_when_it_is_over(tmp_path):
    def parts(experience):
        return split_online_stream([experience], 5, access_task_boundaries=True, seed=0)

    path = tmp_path / "history.jsonl"
    seen = []

    class Looking(HistoryLogger):
        def after_training_exp(self, strategy, metric_values, **kwargs):
            super().after_training_exp(strategy, metric_values, **kwargs)
            seen.append(len(lines(self.path)))

    make = MAKE["redo"]
    whole, expected = trained(make, stream(2), parts=parts)
    plugin, found = trained(make, stream(2), Looking(path), parts=parts)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    half = len(seen) // 2
    assert set(seen[: half - 1]) == {0} and set(seen[half - 1 : -1]) == {seen[half]} and 0 < seen[half] < seen[-1]
    assert lines(path) == json.loads(json.dumps([{"plugin": "ReDoPlugin", **entry} for entry in whole.history]))


def test_numbers_that_are_not_finite_and_files_that_go_on(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text("old\n")
    logger = HistoryLogger(path)
    plugin = plugins.L2Plugin()
    strategy = naive(mlp(), [], plugins=[plugin], loggers=[logger])
    plugin.report({"experience": -1, "penalty": math.inf, "units": {"a": [1, 2]}})
    strategy.train(stream(2).train_stream[0])
    again = pickle.loads(pickle.dumps(logger))
    plugin.report({"experience": 7})
    again.after_training_exp(strategy, [])
    found = lines(path)
    assert found[0] == {"plugin": "L2Plugin", "experience": -1, "penalty": None, "units": {"a": [1, 2]}}
    assert [line["experience"] for line in found] == [-1, 0, 7]
    HistoryLogger(path, append=True)
    assert lines(path) == found


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        HistoryLogger(tmp_path / "file" / "history.jsonl")


def test_a_loop_of_ones_own_holds_no_more_the_longer_it_goes_on(tmp_path):
    """As on the page on long runs; without what it says there, both counts grow."""

    def alive(logged, collect_all):
        logger = HistoryLogger(tmp_path / "history.jsonl")
        loggers = [JSONLinesLogger(tmp_path / "metrics.jsonl"), *([logger] if logged else [])]
        evaluator = EvaluationPlugin(
            accuracy_metrics(experience=True),
            plasticity_metrics(epoch=True, experience=True),
            loggers=loggers,
            collect_all=collect_all,
        )
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        acting = [plugins.ReDoPlugin(every=3), plugins.L2InitPlugin(), plugins.HyperHypoPlugin(percent=10)]
        strategy = Naive(
            model=model, optimizer=optimizer, criterion=torch.nn.CrossEntropyLoss(), plugins=acting, evaluator=evaluator
        )
        counts = []
        benchmark = stream(6)
        for _ in range(2):
            strategy.eval(benchmark.test_stream[:1])
        for experience in [*benchmark.train_stream, *benchmark.train_stream]:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream[:1])
            if logged:
                evaluator.reset_last_metrics()
            counts.append(
                (living()[1], sum(len(plugin.history) for plugin in acting), len(evaluator.get_all_metrics()))
            )
        return counts

    held = alive(True, False)
    assert held[5:] == held[5:6] * 7 and held[-1][1:] == (0, 0)
    grown = alive(False, True)
    assert grown[-1][1] > grown[5][1] > 0 and grown[-1][2] > 0
