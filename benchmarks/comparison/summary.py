"""What the numbers of one benchmark say in plain words, and only as much as their intervals support."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.comparison.results import REFERENCES, Run
from benchmarks.comparison.rows import Values, by_seed, difference, recovery
from benchmarks.comparison.statistics import Interval, excludes_zero, student_interval
from benchmarks.comparison.wording import plain_number

AGAINST_NAIVE = {
    "dead_fraction": (
        "%",
        "At the end of the stream {} of naive’s hidden units are dead.",
        "{} has {} more.",
        "{} has {} fewer.",
    ),
    "forgetting": (
        " points",
        "Of the accuracy it once had on earlier experiences, naive has forgotten {} at the end.",
        "{} forgets {} more.",
        "{} forgets {} less.",
    ),
}
"""By measure: the unit of what naive does, what it does, and how a strategy differs that has more or less of it."""


def summary(strategies: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """Plain sentences about one benchmark.

    A difference is claimed only where the 95% interval of the paired differences over seeds leaves zero out, a recovery
    only where its bootstrap interval does; what the seeds cannot tell is said to be unclear.

    Args:
        strategies: the runs by strategy.

    Returns:
        Sentences in groups of one topic each: plasticity, then dead units and forgetting where known.
    """
    late = {name: by_seed(runs, "late_learning_accuracy") for name, runs in strategies.items()}
    topics = [_plasticity(late)]
    for measure, wording in AGAINST_NAIVE.items():
        values = {name: by_seed(runs, measure) for name, runs in strategies.items()}
        topics.append(_against_naive(values, *wording))
    return [topic for topic in topics if topic]


def _plasticity(late: Mapping[str, Values]) -> list[str]:
    naive, fresh = late.get("naive", {}), late.get("fresh", {})
    seeds = len(naive.keys() & fresh.keys())
    if seeds == 0:
        return ["Loss of plasticity cannot be judged here: that takes both naive and fresh, on the same seeds."]
    if seeds == 1:
        return ["One seed only for naive and fresh: there is no interval, and any difference may be chance."]
    gap = difference(naive, fresh)
    if not excludes_zero(gap):
        return [
            f"With {seeds} seeds naive’s late learning accuracy cannot be told apart from fresh’s (difference "
            f"{_hundredths(gap)}): no loss of plasticity is shown, and recovery is undefined."
        ]
    if (gap["mean"] or 0) > 0:
        return [f"naive’s late learning accuracy is {_hundredths(gap)} above fresh’s: no loss of plasticity."]
    return [
        f"naive’s late learning accuracy is {_hundredths(_opposite(gap))} below fresh’s.",
        *_recoveries(late),
    ]


def _recoveries(late: Mapping[str, Values]) -> list[str]:
    sentences, unclear = [], []
    for strategy, values in late.items():
        if strategy in REFERENCES:
            continue
        interval = recovery(values, late["naive"], late["fresh"])
        low, high = interval["low"], interval["high"]
        if low is None or high is None:
            unclear.append(strategy)
        elif low > 0:
            sentences.append(f"{strategy} recovers {_hundredths(interval, '%', 0)} of that loss.")
        elif high < 0:
            sentences.append(f"{strategy} learns less than naive: recovery {_hundredths(interval, '%', 0)}.")
        else:
            sentences.append(f"{strategy} shows no recovery: {_hundredths(interval, '%', 0)}.")
    if unclear:
        sentences.append(f"For {_listed(unclear)} the seeds cannot tell.")
    return sentences


def _against_naive(values: Mapping[str, Values], unit: str, naive: str, more: str, less: str) -> list[str]:
    reference = values.get("naive", {})
    if len(reference) < 2:
        return []
    sentences = [naive.format(_hundredths(student_interval(np.array(list(reference.values()))), unit))]
    unclear = []
    for strategy, other in values.items():
        change = difference(other, reference)
        if strategy == "naive" or change["mean"] is None:
            continue
        if not excludes_zero(change):
            unclear.append(strategy)
        elif change["mean"] > 0:
            sentences.append(more.format(strategy, _hundredths(change)))
        else:
            sentences.append(less.format(strategy, _hundredths(_opposite(change))))
    if unclear:
        sentences.append(f"No difference from naive is shown for {_listed(unclear)}.")
    return sentences


def _opposite(interval: Interval) -> Interval:
    mean, low, high = (None if value is None else -value for value in interval.values())
    return {"mean": mean, "low": high, "high": low}


def _hundredths(interval: Interval, unit: str = " points", digits: int = 1) -> str:
    mean, low, high = (plain_number(100 * value, digits) for value in interval.values() if value is not None)
    return f"{mean}{unit} [{low}, {high}]".replace("-", "−")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
