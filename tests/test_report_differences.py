"""Paired differences, and what order they show."""

import itertools

import numpy as np
import pytest
from scipy import stats

from benchmarks.comparison.differences import paired_difference, standing


def values(*numbers, first=0):
    return dict(enumerate(numbers, start=first))


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_the_interval_is_the_wider_of_bootstrap_and_student(count):
    rng = np.random.default_rng(count)
    one, other = rng.exponential(size=count) ** 3, rng.normal(size=count)
    found = paired_difference(values(*one), values(*other))
    differences = one - other
    low, high = stats.t.interval(0.95, count - 1, differences.mean(), stats.sem(differences))
    if count <= 5:  # every resample, sorted, without the 2.5% at either end
        means = sorted(np.mean(drawn) for drawn in itertools.product(differences, repeat=count))
        cut = len(means) // 40
        low, high = min(low, means[cut]), max(high, means[-1 - cut])
    assert found.seeds == count
    assert found.mean == pytest.approx(differences.mean())
    assert found.interval["low"] <= low + 1e-12 and found.interval["high"] >= high - 1e-12
    if count <= 5:
        assert (found.interval["low"], found.interval["high"]) == pytest.approx((low, high))


def test_a_bootstrap_reaches_further_than_student_on_skewed_differences():
    skewed = np.random.default_rng(3).exponential(size=40) ** 4
    student = stats.t.interval(0.95, 39, skewed.mean(), stats.sem(skewed))
    found = paired_difference(values(*skewed), values(*np.zeros(40)))
    assert found.interval["low"] == pytest.approx(student[0])
    assert found.interval["high"] > student[1]


def test_only_seeds_in_common_count():
    found = paired_difference(values(1, 2, 9), values(5, 7, first=1))
    assert (found.seeds, found.mean) == (2, pytest.approx((2 - 5 + 9 - 7) / 2))
    assert paired_difference(values(1), values(2, first=1)).mean is None
    assert paired_difference({}, {}).seeds == 0


def test_three_seeds_that_agree_in_sign_are_not_enough():
    assert paired_difference(values(1, 2, 30), values(0, 0, 0)).sign == 0
    assert paired_difference(values(10, 11, 12), values(0, 0, 0)).sign == 1
    assert paired_difference(values(-10, -11, -12), values(0, 0, 0)).sign == -1
    assert paired_difference(values(1), values(0)).sign == 0  # one seed has no interval
    assert paired_difference(values(1, 1), values(1, 1)).sign == 0


def around(mean, spread, seeds=5):
    return values(*(mean + spread * (seed - (seeds - 1) / 2) * (-1) ** seed for seed in range(seeds)))


def test_standing_puts_only_what_is_shown_in_order():
    found = standing(
        {
            "naive": around(0.5, 0.001),
            "fresh": around(0.9, 0.001),
            "best": around(0.8, 0.001),
            "second": around(0.79, 0.02),
            "third": around(0.6, 0.001),
            "noisy": around(0.7, 0.3),
            "same": around(0.5, 0.01),
            "bad": around(0.4, 0.001),
            "unknown": {},
        },
        "naive",
        leave_out=("fresh",),
    )
    assert found.above == ["best", "second", "third"]
    assert list(found.with_first) == ["second", "noisy"]  # the seeds tell noisy neither from naive nor from the best
    assert found.unclear == ["noisy", "same"]
    assert found.below == ["bad"]
    assert set(found.differences) == {"best", "second", "third", "noisy", "same", "bad"}


def test_strategies_are_held_against_the_first_on_all_the_seeds_that_they_share():
    found = standing(
        {"naive": around(0.5, 0.001, 3), "best": around(0.8, 0.001, 6), "near": around(0.799, 0.01, 6)}, "naive"
    )
    assert found.differences["near"].seeds == 3 and found.with_first["near"].seeds == 6


def test_standing_without_the_reference_is_empty():
    found = standing({"redo": around(0.5, 0.1)}, "naive")
    assert not (found.above or found.below or found.unclear or found.with_first or found.differences)
