"""Who is called at which event: only those who do something there."""

from avalanche.core import BaseSGDPlugin
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from quick_runs import Every, Lines, Listener

from plasticity.loading.callbacks import EVENTS, acts, quiet


class Empty(SupervisedPlugin):
    pass


class Stranger:
    """Not one of Avalanche's plugins."""

    def after_update(self, strategy, **kwargs):
        pass


def test_who_acts():
    plugin = Empty()
    assert not any(acts(plugin, event) for event in EVENTS)
    plugin.before_update = lambda strategy: None
    assert [event for event in EVENTS if acts(plugin, event)] == ["before_update"]
    assert [event for event in EVENTS if acts(Stranger(), event)] == ["after_update"]
    assert all(acts(Listener(), event) for event in EVENTS)
    assert not any(acts(BaseSGDPlugin(), event) for event in EVENTS)
    assert [event for event in EVENTS if acts(Every(), event)] == ["after_forward", "before_update"]


class OwnEvaluator(EvaluationPlugin):
    """Has its own way of an event."""

    def before_backward(self, strategy, **kwargs):
        pass


class Counting(BaseLogger):
    """Wants to be told even if there is nothing to log."""

    def log_metrics(self, values):
        pass


def test_evaluators_are_called_where_they_have_somebody_to_tell():
    def told(evaluator):
        return [event for event in EVENTS if quiet(evaluator, event) != []]

    assert told(EvaluationPlugin(loggers=[])) == []
    assert told(EvaluationPlugin(Every(), loggers=[])) == ["after_forward", "before_update"]
    assert told(EvaluationPlugin(loggers=[Lines()])) == ["after_backward"]
    assert told(EvaluationPlugin(loggers=[Counting()])) == list(EVENTS)
    assert told(OwnEvaluator(loggers=[])) == ["before_backward"]
