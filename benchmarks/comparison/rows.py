"""One row per benchmark and strategy: every measure with its 95% interval over seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.comparison.differences import paired_difference
from benchmarks.comparison.results import Comparison, Run
from benchmarks.comparison.seeds import Values, by_seed, paired
from benchmarks.comparison.statistics import (
    Interval,
    bootstrap_ratio,
    excludes_zero,
    geometric_ratio,
    student_interval,
    undefined,
)

MEASURES = (
    "average_accuracy",
    "average_online_accuracy",
    "learning_accuracy",
    "late_learning_accuracy",
    "difference_from_naive",
    "trainability_gap",
    "plasticity_ratio",
    "recovery",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "dead_fraction",
    "dead_unit_area",
    "dormant_fraction",
    "effective_rank",
    "output_shift",
    "accuracy_damage",
    "treated_units",
    "sample_plasticity",
    "largest_hessian_eigenvalue",
    "gradient_effective_rank",
    "relative_time",
    "seconds",
)
"""The measures of a row, in the order in which they are shown."""


def difference(first: Values, second: Values) -> Interval:
    """Mean of the paired differences of two strategies, with Student's 95% interval.

    Args:
        first: a measure by seed.
        second: the same of another strategy.

    Returns:
        first − second over the seeds that both have.
    """
    one, other = paired(first, second)
    return student_interval(one - other)


def plasticity_ratio(method: Values, fresh: Values) -> Interval:
    """Late learning accuracy over that of fresh networks.

    Args:
        method: late learning accuracy by seed.
        fresh: the same of `fresh`.

    Returns:
        The ratio of the two means over the seeds that both have, with a paired bootstrap's interval
        (`bootstrap_ratio`); all fields None where there are no such seeds.
    """
    return bootstrap_ratio(*paired(method, fresh))


def trainability_gap(method: Values, fresh: Values) -> Interval:
    """How far late learning accuracy lies below that of fresh networks with the same budget.

    Args:
        method: late learning accuracy by seed.
        fresh: the same of `fresh`.

    Returns:
        fresh − method over the seeds that both have, with Student's interval of the paired differences.

    Source:
        Klein et al. 2024, arXiv 2411.04832, on the last experience; the last fifth of the stream is less left to
        chance.
    """
    return difference(fresh, method)


def recovery(method: Values, naive: Values, fresh: Values) -> Interval:
    """How much of the loss of plasticity a method undoes: 0 as `naive`, 1 as `fresh`.

    mean(method − naive) / mean(fresh − naive) over the seeds that all three have, with a paired bootstrap's interval
    (`bootstrap_ratio`). All fields are None where the paired Student 95% interval of fresh − naive contains zero: there
    is no loss to recover. With a single seed there is no such interval; the ratio is given unless fresh equals naive.

    Args:
        method: late learning accuracy by seed.
        naive: the same of `naive`.
        fresh: the same of `fresh`.

    Returns:
        The ratio and its interval.
    """
    values, low, high = paired(method, naive, fresh)
    loss = high - low
    if len(loss) > 1 and not excludes_zero(student_interval(loss)):
        return undefined()
    return bootstrap_ratio(values - low, loss)


def time_measure(runs: Sequence[Run]) -> str:
    """By which measure the times of runs are compared.

    Args:
        runs: all runs of a benchmark.

    Returns:
        "process_seconds", the processor's time, which other programs on the machine hardly change; "seconds" of the
        clock where a run was trained on another device, which a processor waits for, or tells no other time.
    """
    on_processor = all(run.settings.get("device", "cpu") == "cpu" for run in runs)
    told = all(run.measures["process_seconds"] is not None for run in runs)
    return "process_seconds" if on_processor and told else "seconds"


def relative_time(method: Values, naive: Values) -> Interval:
    """Time of training over that of `naive`.

    Args:
        method: a time of training by seed.
        naive: the same of `naive`.

    Returns:
        The geometric mean of the ratios over the seeds that both have, with Student's interval (`geometric_ratio`).
    """
    return geometric_ratio(*paired(method, naive))


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The rows of a comparison.

    Means over seeds have Student's 95% interval, `plasticity_ratio` and `recovery` a paired bootstrap's, and
    `relative_time` one of the logarithms of ratios; that of `difference_from_naive`, of late learning accuracy, is
    `paired_difference`'s. A measure that is undefined in any run of a strategy is undefined
    for the strategy. With one seed there are no intervals.

    Args:
        comparison: runs by benchmark and strategy.

    Returns:
        One row per benchmark and strategy, with "benchmark", "strategy", "seeds" (how many), and each of `MEASURES` as
        {"mean", "low", "high"}, None where undefined. Where runs have diverged, "diverged" says how many.
    """
    rows = []
    for benchmark, strategies in comparison.items():
        late = {name: by_seed(runs, "late_learning_accuracy") for name, runs in strategies.items()}
        naive, fresh = late.get("naive", {}), late.get("fresh", {})
        clock = time_measure([run for runs in strategies.values() for run in runs])
        naive_time = by_seed(strategies.get("naive", []), clock)
        for strategy, runs in strategies.items():
            row: dict[str, Any] = {"benchmark": benchmark, "strategy": strategy, "seeds": len(runs)}
            for measure in MEASURES:
                if measure == "difference_from_naive":
                    row[measure] = paired_difference(late[strategy], naive).interval
                elif measure == "trainability_gap":
                    row[measure] = trainability_gap(late[strategy], fresh)
                elif measure == "plasticity_ratio":
                    row[measure] = plasticity_ratio(late[strategy], fresh)
                elif measure == "recovery":
                    row[measure] = recovery(late[strategy], naive, fresh)
                elif measure == "relative_time":
                    row[measure] = relative_time(by_seed(runs, clock), naive_time)
                else:
                    row[measure] = student_interval(np.array(list(by_seed(runs, measure).values())))
            diverged = sum(run.diverged is not None for run in runs)
            rows.append(row | ({"diverged": diverged} if diverged else {}))
    return rows
