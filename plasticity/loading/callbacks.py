"""Which of a strategy's plugins have something to do when an event comes, so that the others need not be asked."""

from __future__ import annotations

from typing import Any

from avalanche.core import BasePlugin, BaseSGDPlugin, SupervisedMetaLearningPlugin, SupervisedPlugin
from avalanche.evaluation import PluginMetric
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates.base_sgd import BaseSGDTemplate

EVENTS = (
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
)
"""Of a training iteration, in order."""

# What these classes do at an event is nothing.
_IDLE = {
    event: {
        base.__dict__[event]
        for base in (BasePlugin, BaseSGDPlugin, SupervisedPlugin, SupervisedMetaLearningPlugin, PluginMetric)
        if event in base.__dict__
    }
    for event in EVENTS
}


def acts(listener: Any, event: str) -> bool:
    """Say whether a plugin, metric or logger may do anything at an event.

    It does not if it only has Avalanche's empty method, or names the event in an attribute `idle_at`.

    Args:
        listener: The object.
        event: One of `EVENTS`.
    """
    if event in getattr(listener, "idle_at", ()):
        return False
    method = getattr(listener, event, None)
    return method is not None and getattr(method, "__func__", None) not in _IDLE[event]


def quiet(evaluator: EvaluationPlugin, event: str) -> list[Any] | None:
    """Return the metrics that an evaluator tells of an event, if they can as well be told without it.

    An evaluator copies the experience each time. A metric that has nothing to emit at an event, and does not ask for
    the experience, says so in an attribute `quiet_at`.

    Args:
        evaluator: The evaluator.
        event: One of `EVENTS`.

    Returns:
        Those that act, perhaps none; None if it has to be the evaluator, which has a way of its own, or a logger or
        another metric that acts at the event.
    """
    if _has_own_way(evaluator, event) or any(acts(logger, event) for logger in evaluator.loggers):
        return None
    told = [metric for metric in evaluator.metrics if acts(metric, event)]
    return told if all(event in getattr(metric, "quiet_at", ()) for metric in told) else None


def _has_own_way(evaluator: EvaluationPlugin, event: str) -> bool:
    """Say whether an evaluator, or a logger of it, may do more at an event than to hand it on."""
    kind = type(evaluator)
    own = any(
        getattr(kind, name) is not getattr(EvaluationPlugin, name)
        for name in ("__getattribute__", "_update_metrics_and_loggers", "publish_metric_value")
    )
    plain = all(getattr(type(logger), "log_metrics", None) is BaseLogger.log_metrics for logger in evaluator.loggers)
    return own or hasattr(kind, event) or event in vars(evaluator) or not plain


class Callbacks:
    """Calls a strategy's plugins at the events of a training iteration, as Avalanche does, but not for nothing.

    Who acts is worked out at the start, again as soon as plugins are added or taken away, and again before an iteration
    if metrics or loggers were. A plugin that has Avalanche's empty method for an event, and gets another one as an
    attribute in the middle of an epoch, is called from the next epoch on.

    Args:
        strategy: The strategy.
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self._look()

    def trigger(self, event: str, **kwargs: Any) -> None:
        """Call those that act.

        Args:
            event: One of `EVENTS`.
            kwargs: What the strategy hands on to its plugins.
        """
        plugins = self.strategy.plugins
        if plugins != self._plugins or (event == EVENTS[0] and self._told_others()):
            self._look()
        if self._own and event in self._own:
            getattr(self.strategy, f"_{event}")(**kwargs)
            return
        for place, plugin, state, metrics in self._acting[event]:
            if state is None or state["_metric_values"]:
                getattr(plugin, event)(self.strategy, **kwargs)
            elif metrics and state["_active"]:
                for metric in metrics:
                    getattr(metric, event)(self.strategy)
            else:
                continue
            if plugins != self._plugins:
                self._rest(plugins, place + 1, event, kwargs)
                break

    def _rest(self, plugins: list[Any], place: int, event: str, kwargs: dict[str, Any]) -> None:
        """Go on with a list that has changed under way, as a loop over it would."""
        while place < len(plugins):
            if hasattr(plugins[place], event):
                getattr(plugins[place], event)(self.strategy, **kwargs)
            place += 1

    def _look(self) -> None:
        strategy = self.strategy
        self._plugins = list(strategy.plugins)
        # The attributes of evaluators, in which looking anything up the ordinary way takes long.
        states = [vars(plugin) for plugin in self._plugins if isinstance(plugin, EvaluationPlugin)]
        self._told = [(state, list(state["metrics"]), list(state["loggers"])) for state in states]
        self._acting = {event: self._acting_at(event) for event in EVENTS}
        # A strategy may do something of its own at an event.
        self._own = {
            event
            for event in EVENTS
            if getattr(type(strategy), f"_{event}") is not getattr(BaseSGDTemplate, f"_{event}")
            or f"_{event}" in vars(strategy)
        }

    def _acting_at(self, event: str) -> list[tuple[int, Any, dict[str, Any] | None, list[Any]]]:
        """Those to call, in order, with their places among the plugins.

        An evaluator with nobody to tell but metrics that can be told without it has only to be called if somebody has
        published a value, which it then gives to its loggers: it stands there with its attributes and those metrics.
        """
        found: list[tuple[int, Any, dict[str, Any] | None, list[Any]]] = []
        for place, plugin in enumerate(self._plugins):
            if isinstance(plugin, EvaluationPlugin):
                metrics = quiet(plugin, event)
                found.append((place, plugin, vars(plugin) if metrics is not None else None, metrics or []))
            elif acts(plugin, event):
                found.append((place, plugin, None, []))
        return found

    def _told_others(self) -> bool:
        """Say whether evaluators have other metrics or loggers than before."""
        for state, metrics, loggers in self._told:
            if state["metrics"] != metrics or len(state["loggers"]) != len(loggers):
                return True
        return False
