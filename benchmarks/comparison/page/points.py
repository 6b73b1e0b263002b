"""What strategies win back against what they forget."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.comparison.wording import WORDING


def scatter(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The points of recovery against forgetting.

    Args:
        rows: the rows of one benchmark.

    Returns:
        "points" with "name" and mean, low and high of "x" (forgetting) and "y" (recovery, or late learning accuracy
        where no loss is there to be recovered), "axes" with their names, "lines" at which a dashed line is drawn; None
        where fewer than two strategies have both.
    """
    recovered = sum(row["recovery"]["mean"] is not None for row in rows) > 2  # beside naive and fresh
    upward = "recovery" if recovered else "late_learning_accuracy"
    points = [
        {"name": row["strategy"], "x": _numbers(row["forgetting"]), "y": _numbers(row[upward])}
        for row in rows
        if row["forgetting"]["mean"] is not None and row[upward]["mean"] is not None
    ]
    if len(points) < 2:
        return None
    axes = {"x": WORDING["forgetting"].label, "y": WORDING[upward].label}
    return {"points": points, "axes": axes, "lines": [0, 1] if recovered else []}


def _numbers(interval: Mapping[str, float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.4g}") for value in interval.values()]
