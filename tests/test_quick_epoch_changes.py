"""What changes in the middle of a quick epoch must be heeded from the same call on as in Avalanche's own."""

from copy import copy

import pytest
from avalanche.evaluation.metric_results import MetricValue
from avalanche.models import MultiTaskModule, SimpleMLP
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from quick_runs import Every, Lines, Listener, assert_same, train, with_optimizer


class Meddler(SupervisedPlugin):
    """Does something in the middle of an epoch, once."""

    def __init__(self, meddle):
        super().__init__()
        self.meddle = meddle

    def after_forward(self, strategy, **kwargs):
        if strategy.clock.train_iterations == 4 and self.meddle is not None:
            meddle, self.meddle = self.meddle, None
            meddle(strategy, self)


def _replace_evaluator(strategy, me):
    strategy.plugins[strategy.plugins.index(strategy.evaluator)] = EvaluationPlugin(Every(), loggers=[_OTHER])


def _double_output(strategy, me):
    strategy.forward = lambda: 2 * type(strategy).forward(strategy)


_OTHER = Lines()


MEDDLING = {
    "another forward pass": _double_output,
    "a plugin more": lambda strategy, me: strategy.plugins.append(Listener()),
    "another list of plugins": lambda strategy, me: setattr(strategy, "plugins", [*strategy.plugins, Listener()]),
    "a plugin less": lambda strategy, me: strategy.plugins.remove(me),
    "a plugin before": lambda strategy, me: strategy.plugins.insert(0, Listener()),
    "stop": lambda strategy, me: strategy.stop_training(),
    "publish": lambda strategy, me: strategy.evaluator.publish_metric_value(MetricValue(me, "published", 3.0, 4)),
    "inactive": lambda strategy, me: setattr(strategy.evaluator, "active", False),
    "another evaluator": _replace_evaluator,
}


@pytest.mark.parametrize("name", MEDDLING)
def test_what_changes_in_the_middle_of_an_epoch_is_heeded(name):
    runs = []
    for quick in (True, False):
        _OTHER.lines = []
        run = train(quick, strategy=with_optimizer(Naive), plugins=lambda: [Meddler(MEDDLING[name])])
        others = [plugin.seen for plugin in run[0].plugins if type(plugin) is Listener]
        runs.append((run[0], run[1], [*run[2], *others, *_OTHER.lines], run[3]))
    assert_same(*runs)


def test_metrics_and_loggers_that_join_are_told_from_the_next_iteration_on():
    def meddle(strategy, me):
        strategy.evaluator.metrics.append(Every())

    run = train(True, strategy=with_optimizer(Naive), plugins=lambda: [Meddler(meddle)])
    assert [line[2] for line in run[2] if line[0] == "before_update"] == list(range(5, 14))


def _forget_task_labels(strategy, me):
    strategy.experience = copy(strategy.experience)
    del strategy.experience.task_labels


class AsksForLabels(MultiTaskModule):
    """Computes something else where it is not told the task."""

    def __init__(self, **kwargs):
        super().__init__()
        self.inner = SimpleMLP(**kwargs)

    def forward(self, x, task_labels=None):
        return self.inner(x) if task_labels is None else 3 * self.inner(x)


def test_task_labels_are_handed_on_as_long_as_there_are_any():
    seen = []
    for plugins in (list, lambda: [Meddler(_forget_task_labels)]):
        runs = [
            train(quick, strategy=with_optimizer(Naive), plugins=plugins, model=AsksForLabels)
            for quick in (True, False)
        ]
        assert_same(*runs)
        seen.append(runs[0][1])
    assert seen[0][:30] == seen[1][:30] and seen[0] != seen[1]
