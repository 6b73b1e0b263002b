"""What plugins tell the loggers of a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche.evaluation.metric_definitions import Metric
from avalanche.evaluation.metric_results import MetricValue


class _Source(Metric[float]):
    """Stands for a plugin in what it tells the loggers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def result(self, **kwargs: Any) -> float | None:
        return None

    def reset(self, **kwargs: Any) -> None:
        return None

    def __str__(self) -> str:
        return self.name


def publish(strategy: Any, method: str, values: Mapping[str, float], *, dry_run: bool = False) -> None:
    """Tell a strategy's loggers what a treatment did, named as metrics of training are.

    Args:
        strategy: The strategy, in an experience.
        method: Name of the method, "synaptic-stripping" for example.
        values: Numbers by name; "output_shift" becomes `SynapticStrippingOutputShift/train_phase/train_stream/Exp000`.
        dry_run: Whether nothing was treated: the names say so.
    """
    experience = int(strategy.experience.current_experience)
    source = _Source(method)
    for name, value in values.items():
        words = (*method.split("-"), *name.split("_"), *(("dry", "run") if dry_run else ()))
        title = "".join(part.capitalize() for part in words)
        full = f"{title}/train_phase/train_stream/Exp{experience:03d}"
        told = MetricValue(source, full, float(value), strategy.clock.train_iterations)
        strategy.evaluator.publish_metric_value(told)
