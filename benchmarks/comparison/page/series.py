"""What the plots show: runs turned into short lists of numbers, averaged over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.comparison.results import Run
from benchmarks.comparison.statistics import student_half_width

POINTS = 240
"""A curve has at most so many points; on longer streams each is a mean over several experiences."""

CELLS = 64
"""A map has at most so many columns."""

SHARES = ("dead", "dormant", "over_active")
"""What is known of every layer."""

ACCURACIES = {
    "learning_accuracy": "just after learning",
    "online_accuracy": "online, before each update",
    "accuracy_so_far": "average over the experiences so far",
}
"""Accuracies by experience, and what they are called."""

LABELS = {
    "dead_fraction": "dead units",
    "dormant_fraction": "dormant units",
    "over_active_fraction": "over-active units",
    "output_shift": "output shift of interventions",
}
"""Other numbers by experience; those that are not named here are called as their key is."""

SMOOTH_FROM = 40
"""On streams of so many experiences accuracies may also be shown as running means."""


def label(key: str) -> str:
    """What a series is called.

    Args:
        key: its name in the data.

    Returns:
        Plain words.
    """
    return ACCURACIES.get(key) or LABELS.get(key) or key.replace("_", " ")


def run_series(run: Run) -> dict[str, np.ndarray]:
    """Everything that a run tells of each experience.

    Args:
        run: a finished run.

    Returns:
        Arrays by name, NaN where nothing was measured: the accuracies, shape (S,) for the S experiences that are
        scored; every number in the run's `units` and how far interventions moved the outputs, shape (T,).
    """
    matrix = run.accuracy_matrix
    found = {
        "learning_accuracy": run.learning_accuracy,
        "online_accuracy": run.online_accuracy,
        "accuracy_so_far": np.array([_accuracy_so_far(row[: i + 1]) for i, row in enumerate(matrix)]),
    }
    for key in dict.fromkeys(key for entry in run.units for key in entry):
        values = [entry.get(key) for entry in run.units]
        if key not in ("experience", "samples") and all(_is_number(value) for value in values if value is not None):
            found[key] = np.array(values, dtype=np.float64)
    shifts: list[list[float]] = [[] for _ in run.units]
    for treatment in run.treatments:
        if _is_number(treatment.get("output_shift")) and treatment.get("experience") in range(len(shifts)):
            shifts[treatment["experience"]].append(treatment["output_shift"])
    found["output_shift"] = np.array([np.mean(shift) if shift else np.nan for shift in shifts])
    return {key: values for key, values in found.items() if np.isfinite(values).any()}


def _accuracy_so_far(row: np.ndarray) -> float:
    """Mean over the experiences so far; where some earlier ones were not tested, as if they were like the others."""
    earlier = row[:-1][np.isfinite(row[:-1])]
    if len(earlier) == len(row) - 1:
        return float(row.mean())
    return float((row[-1] + earlier.mean() * (len(row) - 1)) / len(row)) if len(earlier) else math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def block_means(values: np.ndarray, limit: int, axes: Sequence[int] = (-1,)) -> np.ndarray:
    """Shortens axes: means over neighbours, as many of each as it takes to have no more than `limit`.

    Args:
        values: any shape; NaN is left out of the means.
        limit: the largest length.
        axes: which axes to shorten.

    Returns:
        The same number of axes; each that is shortened has ceil(T / b) entries instead of T, with b = ceil(T / limit).
        A block of nothing but NaN is NaN.
    """
    known = np.isfinite(values)
    total, count = np.where(known, values, 0.0), known.astype(np.int64)
    for axis in axes:
        size = values.shape[axis]
        starts = np.arange(0, size, -(-size // limit))
        total, count = np.add.reduceat(total, starts, axis=axis), np.add.reduceat(count, starts, axis=axis)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the neighbours of each entry, over fewer at both ends.

    Args:
        values: shape (T,).
        window: odd, how many entries to average.

    Returns:
        Shape (T,).
    """
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def smoothing(experiences: int) -> int:
    """Over how many points running means are taken.

    Args:
        experiences: length of the stream.

    Returns:
        An odd number, 1 for short streams.
    """
    return 2 * (min(experiences, POINTS) // SMOOTH_FROM) + 1


def grid(experiences: Sequence[int], total: int, limit: int) -> dict[str, Any]:
    """Which experiences the points of a curve, or the rows and columns of a map, stand for.

    Args:
        experiences: indices of those that are shown, in order.
        total: length of the stream.
        limit: how many points there are, at most; see `block_means`.

    Returns:
        "first" and "last" experience of each, counted from 1, and "total".
    """
    size = -(-len(experiences) // limit)
    blocks = [experiences[start : start + size] for start in range(0, len(experiences), size)]
    return {"first": [block[0] + 1 for block in blocks], "last": [block[-1] + 1 for block in blocks], "total": total}


def grids(run: Run) -> dict[str, dict[str, Any]]:
    """The grids of all plots of a benchmark.

    Args:
        run: any of its runs.

    Returns:
        A `grid` each for curves of "accuracy" and of "units", and for the "matrix" and the "layers".
    """
    total = len(run.units)
    return {
        "accuracy": grid(run.scored, total, POINTS),
        "units": grid(range(total), total, POINTS),
        "matrix": grid(run.scored, total, CELLS),
        "layers": grid(range(total), total, CELLS),
    }


def curve(values: np.ndarray) -> dict[str, list[float | None] | None]:
    """Mean over seeds and half of its 95% interval, point by point.

    Args:
        values: shape (n, T), one row a seed.

    Returns:
        "mean" and "half", T numbers each; "half" is None for a single seed.
    """
    half = plain(student_half_width(values)) if len(values) > 1 else None
    return {"mean": plain(values.mean(axis=0)), "half": half}


def curves(strategies: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Any]]:
    """All series of all strategies.

    Args:
        strategies: the runs of one benchmark by strategy.

    Returns:
        By name of the series, then by strategy: a `curve`. Accuracies come a second time as running means, under their
        name with "~" before it, where the stream is long. A series that a run lacks is left out for its strategy.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, runs in strategies.items():
        every = [run_series(run) for run in runs]
        for key in every[0]:
            if not all(key in series for series in every):
                continue
            values = block_means(np.stack([series[key] for series in every]), POINTS)
            found.setdefault(key, {})[name] = curve(values)
            window = smoothing(len(runs[0].scored))
            if key in ACCURACIES and window > 1:
                smooth = np.stack([running_mean(row, window) for row in values])
                found.setdefault("~" + key, {})[name] = curve(smooth)
    order = [*ACCURACIES, *LABELS]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def layers(runs: Sequence[Run]) -> dict[str, Any]:
    """Shares of dead, dormant and over-active units by layer, mean over seeds.

    Args:
        runs: the runs of one strategy.

    Returns:
        "names" of the layers and "sizes"; each of `SHARES` as one list a layer, and one for the whole network at the
        end. A layer that appears late in a growing network has no values before.
    """
    sizes = {name: layer["size"] for run in runs for entry in run.units for name, layer in entry["layers"].items()}
    found: dict[str, Any] = {"names": list(sizes), "sizes": list(sizes.values())}
    for share in SHARES:
        values = [
            [[entry["layers"].get(name, {}).get(share, math.nan) for entry in run.units] for name in sizes]
            + [[entry[f"{share}_fraction"] for entry in run.units]]
            for run in runs
        ]
        found[share] = [plain(row) for row in block_means(np.mean(values, axis=0), CELLS)]
    return found


def matrix(runs: Sequence[Run]) -> list[list[float | None]]:
    """Test accuracy on every experience after every experience, mean over the seeds that have it.

    Args:
        runs: the runs of one strategy.

    Returns:
        Rows of a lower triangle: the i-th has i + 1 entries.
    """
    every = np.array([run.accuracy_matrix for run in runs])
    known = np.isfinite(every)
    count = known.sum(axis=0)
    total = np.where(known, every, 0.0).sum(axis=0)
    mean = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    mean[np.triu_indices_from(mean, 1)] = math.nan
    return [plain(row[: i + 1]) for i, row in enumerate(block_means(mean, CELLS, axes=(0, 1)))]


def plain(values: np.ndarray) -> list[float | None]:
    """Numbers as they are stored in the page.

    Args:
        values: shape (T,).

    Returns:
        Four significant digits; None for NaN.
    """
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]
