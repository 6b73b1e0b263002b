"""Measures by seed, and how those of several strategies are lined up."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.comparison.results import Run

Values = Mapping[int, float]
"""One measure by seed."""


def by_seed(runs: Sequence[Run], measure: str) -> dict[int, float]:
    """One measure of a strategy's runs.

    Args:
        runs: runs of one strategy.
        measure: a measure of single runs, such as "forgetting".

    Returns:
        The value by seed; empty where the measure is undefined for any of the runs, since a mean over the others would
        be one over fewer seeds than the row says.
    """
    values = {run.seed: run.measures[measure] for run in runs}
    if any(value is None for value in values.values()):
        return {}
    return {seed: value for seed, value in values.items() if value is not None}


def paired(*values: Values) -> tuple[np.ndarray, ...]:
    """Lines measures up by seed.

    Args:
        values: measures by seed.

    Returns:
        One array each, over the seeds that all of them have, in order of seed.
    """
    seeds = sorted(set.intersection(*(set(value) for value in values)))
    return tuple(np.array([value[seed] for seed in seeds]) for value in values)
