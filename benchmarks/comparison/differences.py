"""Paired differences between strategies, and which of them the seeds can tell apart."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.comparison.seeds import Values, paired
from benchmarks.comparison.statistics import Interval, bootstrap_ratio, student_interval


@dataclass(frozen=True)
class Difference:
    """How far one strategy's measure is from another's on the same seeds.

    Attributes:
        interval: the mean of the paired differences and its 95% interval.
        seeds: how many seeds both have.
    """

    interval: Interval
    seeds: int

    @property
    def mean(self) -> float | None:
        """The mean of the paired differences; None where no seed has both."""
        return self.interval["mean"]

    @property
    def sign(self) -> int:
        """1 where the first is shown to be larger, −1 where smaller, 0 where the seeds cannot tell."""
        low, high = self.interval["low"], self.interval["high"]
        if low is None or high is None or low <= 0 <= high:
            return 0
        return 1 if low > 0 else -1


def paired_difference(first: Values, second: Values) -> Difference:
    """Compares two strategies on the seeds that both have.

    The interval reaches as far as the wider of two does: a paired bootstrap's (`bootstrap_ratio` over a denominator of
    one) and Student's. With few seeds a bootstrap is too narrow, for it draws from those few only: three seeds that
    agree in sign would always show a difference. With many seeds it is the one that follows a skewed distribution.

    Args:
        first: a measure by seed.
        second: the same of another strategy.

    Returns:
        first − second; low and high are None for fewer than two seeds, all fields for none.
    """
    one, other = paired(first, second)
    differences = one - other
    student, bootstrap = student_interval(differences), bootstrap_ratio(differences, np.ones_like(differences))
    low, high = student["low"], student["high"]
    if low is not None and high is not None and bootstrap["low"] is not None and bootstrap["high"] is not None:
        low, high = min(low, bootstrap["low"]), max(high, bootstrap["high"])
    return Difference({"mean": student["mean"], "low": low, "high": high}, len(differences))


@dataclass(frozen=True)
class Standing:
    """Where strategies stand against a reference, as far as the intervals tell.

    Attributes:
        above: strategies with more than the reference, largest mean first.
        with_first: how far the first of `above` is from the strategies that are not shown to have less than it; some
            of them may be in `unclear`.
        unclear: strategies that the seeds cannot tell apart from the reference.
        below: strategies with less than the reference, smallest mean first.
        differences: the difference from the reference, of all of these.
    """

    above: list[str]
    with_first: dict[str, Difference]
    unclear: list[str]
    below: list[str]
    differences: dict[str, Difference]


def standing(values: Mapping[str, Values], reference: str, leave_out: Collection[str] = ()) -> Standing:
    """Holds strategies against a reference, and those above it against the first of them.

    Args:
        values: a measure by seed, by strategy; empty where undefined.
        reference: the strategy to compare with.
        leave_out: strategies that are not compared.

    Returns:
        Their standing; a strategy without a seed of the reference's is in none of its lists.
    """
    base = values.get(reference, {})
    names = [name for name in values if name != reference and name not in leave_out]
    differences = {name: paired_difference(values[name], base) for name in names}
    differences = {name: found for name, found in differences.items() if found.mean is not None}
    by_mean = sorted(differences, key=lambda name: -(differences[name].mean or 0.0))
    above = [name for name in by_mean if differences[name].sign > 0]
    below = [name for name in reversed(by_mean) if differences[name].sign < 0]
    unclear = [name for name in differences if differences[name].sign == 0]
    from_first = {name: paired_difference(values[above[0]], values[name]) for name in by_mean if above}
    with_first = {name: found for name, found in from_first.items() if name != above[0] and found.sign <= 0}
    return Standing(above, with_first, unclear, below, differences)
