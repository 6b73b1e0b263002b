"""The JSON lines logger is complete and plain, and Avalanche's own loggers show the metrics."""

import contextlib
import copy
import io
import json
import math
import pickle
import warnings

import dill
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from avalanche.evaluation.metric_results import AlternativeValues, MetricValue
from avalanche.evaluation.metrics import accuracy_metrics, confusion_matrix_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TextLogger
from avalanche.training.plugins import SupervisedPlugin
from metric_cases import EVERY, emitted, mlp, naive, stream

from plasticity import UserError
from plasticity.metrics import JSONLinesLogger, plasticity_metrics


def lines(path):
    """The objects of a file; NaN and Infinity, which are no JSON, are refused."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def learn(strategy, benchmark):
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    return emitted(strategy)


def by_name(entries):
    found = {}
    for entry in entries:
        xs, values = found.setdefault(entry["name"], ([], []))
        xs.append(entry["x"])
        values.append(entry["value"])
    return found


class Publishing(SupervisedPlugin):
    """Publishes a value by itself at every callback where a plugin may."""

    def __init__(self):
        super().__init__()
        self.published = 0

    def _publish(self, strategy, **kwargs):
        self.published += 1
        value = MetricValue(self, "Published", float(self.published), strategy.clock.train_iterations)
        strategy.evaluator.publish_metric_value(value)

    before_training = before_training_exp = before_forward = after_update = after_training_iteration = _publish
    after_training_epoch = after_training_exp = after_training = before_eval = after_eval_iteration = _publish
    after_eval_exp = after_eval = _publish


def test_everything_that_is_emitted_is_written(tmp_path):
    metrics = [
        *plasticity_metrics(**EVERY, per_layer=True),
        *accuracy_metrics(**EVERY),
        *loss_metrics(**EVERY),
        *forgetting_metrics(experience=True, stream=True),
    ]
    plugin, path = Publishing(), tmp_path / "new" / "folder" / "metrics.jsonl"
    with JSONLinesLogger(path) as logger:
        strategy = naive(mlp(), metrics, plugins=[plugin], loggers=[logger], eval_every=1)
        found = learn(strategy, stream(task_labels=True))
    written = by_name(lines(path))
    assert written == found
    assert written["Published"][1] == list(range(1, plugin.published + 1)) and plugin.published > 100
    assert all(list(entry) == ["name", "value", "x"] for entry in lines(path))
    assert {type(entry["value"]) for entry in lines(path)} == {float}
    assert {type(entry["x"]) for entry in lines(path)} == {int}


def test_each_line_is_in_the_file_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"

    class Look(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.sizes = []

        def before_training_iteration(self, strategy, **kwargs):
            self.sizes.append(len(lines(path)))

    look = Look()
    logger = JSONLinesLogger(path)
    naive(mlp(), plasticity_metrics(minibatch=True, measures=["DeadUnits"]), plugins=[look], loggers=[logger]).train(
        stream().train_stream[0]
    )
    assert look.sizes == list(range(6))
    logger.close()


def test_values_become_plain_numbers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {
        "float": (1.5, 1.5),
        "int": (3, 3),
        "bool": (True, 1),
        "none": (None, None),
        "text": ('a "quoted" é', 'a "quoted" é'),
        "tensor": (torch.tensor(0.25, requires_grad=True), 0.25),
        "whole tensor": (torch.tensor(7), 7),
        "half": (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        "one entry": (torch.tensor([2.0]), [2.0]),
        "matrix": (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        "numpy": (np.float32(0.5), 0.5),
        "array": (np.array([1.0, math.nan]), [1.0, None]),
        "list": ([1, (2.0, np.int64(3))], [1, [2.0, 3]]),
        "best": (AlternativeValues(plt.Figure(), torch.eye(2)), [[1.0, 0.0], [0.0, 1.0]]),
        "zero": (AlternativeValues(plt.Figure(), 0.0), 0.0),
    }
    with JSONLinesLogger(path) as logger:
        for name, (value, _) in values.items():
            logger.log_single_metric(name, value, torch.tensor(4))
        logger.log_metrics([MetricValue(None, "dict", {"a": 1.0, 2: torch.tensor(2.0)}, 5)])
    expected = [{"name": name, "value": value, "x": 4} for name, (_, value) in values.items()]
    expected += [{"name": "dict/a", "value": 1.0, "x": 5}, {"name": "dict/2", "value": 2.0, "x": 5}]
    assert lines(path) == expected


def test_values_that_are_not_finite(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JSONLinesLogger(path) as logger:
        for value in (math.nan, math.inf, -math.inf, torch.tensor(math.nan), np.float64(-math.inf)):
            logger.log_single_metric("value", value, 0)
    assert [entry["value"] for entry in lines(path)] == [None] * 5
    assert [entry["nonfinite"] for entry in lines(path)] == ["nan", "inf", "-inf", "nan", "-inf"]


def test_what_json_cannot_hold_is_left_out_and_named_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JSONLinesLogger(path) as logger, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            logger.log_single_metric("plot", plt.Figure(), 0)
        logger.log_single_metric("plot", AlternativeValues(plt.Figure()), 0)
        logger.log_single_metric("wave", [1 + 2j], 0)
        logger.log_single_metric("number", 1.0, 0)
    assert [str(each.message) for each in caught] == [
        "plot is of type Figure, which JSON cannot hold: such values are left out",
        "wave is of type complex, which JSON cannot hold: such values are left out",
    ]
    assert [entry["name"] for entry in lines(path)] == ["number"]


def test_a_confusion_matrix_is_a_list(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = confusion_matrix_metrics(num_classes=6, save_image=True, stream=True)
    with JSONLinesLogger(path) as logger:
        strategy = naive(mlp(), metrics, loggers=[logger])
        strategy.eval(stream().test_stream)
    (entry,) = lines(path)
    assert entry["name"] == "ConfusionMatrix_Stream/eval_phase/test_stream"
    assert np.array(entry["value"]).shape == (6, 6) and np.sum(entry["value"]) == 30


def test_a_new_logger_begins_a_new_file_unless_told_otherwise(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for append, expected in ((False, ["0"]), (True, ["0", "1"]), (False, ["2"])):
        with JSONLinesLogger(path, append=append) as logger:
            logger.log_single_metric(expected[-1], 1.0, 0)
        assert [entry["name"] for entry in lines(path)] == expected
    logger.log_single_metric("after it was closed", 1.0, 0)
    logger.close()
    assert [entry["name"] for entry in lines(path)] == ["2", "after it was closed"]


@pytest.mark.parametrize("module", [pickle, dill])
def test_a_restored_logger_goes_on_in_the_same_file(tmp_path, monkeypatch, module):
    path = tmp_path / "metrics.jsonl"
    monkeypatch.chdir(tmp_path)
    logger = JSONLinesLogger("metrics.jsonl")
    logger.log_single_metric("before", 1.0, 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    restored, copied = module.loads(module.dumps(logger)), copy.deepcopy(logger)
    for each, name in ((restored, "restored"), (logger, "first"), (copied, "copied"), (restored, "restored")):
        each.log_single_metric(name, 1.0, 0)
    for each in (restored, logger, copied):
        each.close()
    assert [entry["name"] for entry in lines(path)] == ["before", "restored", "first", "copied", "restored"]


def test_a_run_that_is_restored_writes_what_the_whole_run_writes(tmp_path):
    benchmark, paths = stream(2), [tmp_path / "whole.jsonl", tmp_path / "restored.jsonl"]
    for path in paths:
        logger = JSONLinesLogger(path)
        strategy = naive(mlp(), plasticity_metrics(**EVERY), loggers=[logger])
        torch.manual_seed(5)
        strategy.train(benchmark.train_stream[0])
        if path == paths[1]:
            strategy.evaluator = strategy.plugins[-3] = dill.loads(dill.dumps(strategy.evaluator))
            logger.close()
        strategy.train(benchmark.train_stream[1])
    assert lines(paths[0]) == lines(paths[1]) != []


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "metrics.jsonl"):
        with pytest.raises(UserError, match=f"cannot write {path}: .* directory$"):
            JSONLinesLogger(path)


def shown(loggers):
    metrics = [*plasticity_metrics(**EVERY, per_layer=True), *accuracy_metrics(**EVERY), *loss_metrics(**EVERY)]
    return learn(naive(mlp(), metrics, loggers=loggers), stream(2, task_labels=True))


def test_avalanches_text_loggers_show_the_metrics(tmp_path):
    text, screen = io.StringIO(), io.StringIO()
    table = CSVLogger(tmp_path)
    with contextlib.redirect_stdout(screen):
        found = shown([TextLogger(text), table, InteractiveLogger()])
    table.close()
    for output in (text.getvalue(), screen.getvalue()):
        for name, (_, values) in found.items():
            assert "_MB/" in name or f"\t{name} = {values[-1]:.4f}\n" in output
    assert len((tmp_path / "training_results.csv").read_text().splitlines()) == 5  # what it writes is not disturbed


def test_tensorboard_shows_the_metrics(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from avalanche.logging import TensorboardLogger

    logger = TensorboardLogger(tmp_path)
    found = shown([logger])
    logger.writer.flush()
    board = reader.EventAccumulator(str(tmp_path)).Reload()
    assert set(board.Tags()["scalars"]) == set(found) and board.Tags()["histograms"] == []
    for name, (xs, values) in found.items():
        assert [each.step for each in board.Scalars(name)] == xs
        assert [each.value for each in board.Scalars(name)] == pytest.approx(values, rel=1e-6)
