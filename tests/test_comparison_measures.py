"""Measures of one run, and intervals over seeds, against slow references and examples worked out by hand."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from benchmarks.comparison.measures import (
    ACCURACY_MEASURES,
    FURTHER_MEASURES,
    UNIT_MEASURES,
    forward_transfer,
    late_experiences,
    result_measures,
    run_measures,
    treated_units,
)
from benchmarks.comparison.rows import plasticity_ratio, recovery, relative_time, trainability_gap
from benchmarks.comparison.statistics import bootstrap_ratio, excludes_zero, geometric_ratio, student_interval

UNDEFINED = {"mean": None, "low": None, "high": None}


def random_matrix(size: int, seed: int, fresh: bool = False) -> list[list[float | None]]:
    generator = np.random.default_rng(seed)
    measured = [[j == i or i == size - 1 or (j < i and not fresh) for j in range(size)] for i in range(size)]
    return [[float(generator.random()) if measured[i][j] else None for j in range(size)] for i in range(size)]


def slow_measures(matrix, fresh):
    """The formulas as loops, from their definitions."""
    size = len(matrix)
    average = learning = late = 0.0
    for j in range(size):
        average += matrix[size - 1][j] / size
        learning += matrix[j][j] / size
    last = math.ceil(size / 5)
    for i in range(size - last, size):
        late += matrix[i][i] / last
    forgetting = transfer = None
    if size > 1 and not fresh:
        forgetting = transfer = 0.0
        for j in range(size - 1):
            best = 0.0
            for row in range(j, size - 1):
                best = max(best, matrix[row][j])
            forgetting += (best - matrix[size - 1][j]) / (size - 1)
            transfer += (matrix[size - 1][j] - matrix[j][j]) / (size - 1)
    return dict(zip(ACCURACY_MEASURES, (average, learning, late, forgetting, transfer), strict=True))


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 11])
def test_measures_equal_loops(size, fresh):
    matrix = random_matrix(size, seed=size, fresh=fresh)
    measures = run_measures(matrix, fresh)
    assert list(measures) == list(ACCURACY_MEASURES)
    assert measures == pytest.approx(slow_measures(matrix, fresh), abs=1e-12)


def test_measures_by_hand():
    matrix = [[0.8, None, None], [0.9, 0.6, None], [0.5, 0.7, 1.0]]
    measures = run_measures(matrix, fresh=False)
    assert measures["average_accuracy"] == pytest.approx(2.2 / 3)
    assert measures["learning_accuracy"] == pytest.approx(0.8)
    assert measures["late_learning_accuracy"] == 1.0
    assert measures["forgetting"] == pytest.approx(((0.9 - 0.5) + (0.6 - 0.7)) / 2)  # the best before may be exceeded
    assert measures["backward_transfer"] == pytest.approx(((0.5 - 0.8) + (0.7 - 0.6)) / 2)


def test_fresh_forgets_nothing_and_needs_the_diagonal_and_the_last_row_only():
    measures = run_measures([[0.8, None], [0.1, 0.6]], fresh=True)
    assert measures["forgetting"] is None and measures["backward_transfer"] is None
    assert measures["learning_accuracy"] == pytest.approx(0.7)


def test_measures_take_arrays_with_nan():
    matrix = random_matrix(4, seed=0)
    array = np.array([[math.nan if value is None else value for value in row] for row in matrix])
    assert run_measures(array, fresh=False) == run_measures(matrix, fresh=False)


@pytest.mark.parametrize(("experiences", "late"), [(1, 1), (4, 1), (5, 1), (6, 2), (10, 2), (50, 10), (51, 11)])
def test_last_fifth_is_rounded_up(experiences, late):
    assert late_experiences(experiences) == late


@pytest.mark.parametrize(
    ("matrix", "fresh", "message"),
    [
        ([], False, "empty"),
        ([[0.5, None]], False, r"accuracy_matrix\[0\] should be a list of 1"),
        ([0.5], False, r"accuracy_matrix\[0\]"),
        (["x"], False, r"accuracy_matrix\[0\]"),
        ([[1.5]], False, "accuracy from 0 to 1, not 1.5"),
        ([[-0.1]], False, "accuracy from 0 to 1"),
        ([[True]], False, "accuracy from 0 to 1, not True"),
        ([["0.5"]], False, "accuracy from 0 to 1"),
        ([[None]], True, r"accuracy_matrix\[0\]\[0\] is missing"),
        ([[0.5, None, None], [None, 0.5, None], [0.5, 0.5, 0.5]], False, r"accuracy_matrix\[1\]\[0\] is missing"),
        ([[0.5, None], [None, 0.5]], True, r"accuracy_matrix\[1\]\[0\] is missing"),
    ],
)
def test_measures_refuse_what_is_no_accuracy_matrix(matrix, fresh, message):
    with pytest.raises(ValueError, match=message):
        run_measures(matrix, fresh)


def test_measures_import_nothing_heavy():
    code = (
        "import sys, benchmarks.comparison.measures;"
        "heavy = {'torch', 'avalanche', 'matplotlib', 'scipy', 'jinja2', 'rich'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_student_interval_equals_scipy(count):
    values = np.random.default_rng(count).random(count)
    interval = student_interval(values)
    low, high = scipy.stats.t.interval(0.95, count - 1, loc=values.mean(), scale=scipy.stats.sem(values))
    assert [interval["mean"], interval["low"], interval["high"]] == pytest.approx([values.mean(), low, high])


def test_student_interval_of_few():
    assert student_interval(np.array([])) == UNDEFINED
    assert student_interval(np.array([0.4])) == {"mean": 0.4, "low": None, "high": None}
    assert student_interval(np.array([0.5, 0.5])) == {"mean": 0.5, "low": 0.5, "high": 0.5}


def slow_bootstrap(numerators, denominators):
    """Every possible resample, one after the other."""
    ratios = []
    for drawn in itertools.product(range(len(numerators)), repeat=len(numerators)):
        ratios.append(sum(numerators[i] for i in drawn) / sum(denominators[i] for i in drawn))
    ratios.sort()
    cut = math.floor(len(ratios) * 0.025)
    return ratios[cut], ratios[len(ratios) - 1 - cut]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_bootstrap_of_few_seeds_enumerates_all_resamples(count):
    generator = np.random.default_rng(count)
    above, below = generator.random(count), 1 + generator.random(count)
    interval = bootstrap_ratio(above, below)
    assert interval["mean"] == pytest.approx(above.mean() / below.mean())
    assert [interval["low"], interval["high"]] == pytest.approx(slow_bootstrap(above, below))


def test_bootstrap_of_many_seeds_is_near_the_normal_approximation_and_repeatable():
    generator = np.random.default_rng(1)
    below = 1 + 0.1 * generator.standard_normal(400)
    above = 0.5 * below + 0.05 * generator.standard_normal(400)  # paired: the spread of the ratio is that of the rest
    interval = bootstrap_ratio(above, below)
    residual = above - interval["mean"] * below
    half = 1.96 * residual.std(ddof=1) / math.sqrt(400) / below.mean()
    assert interval["low"] == pytest.approx(interval["mean"] - half, abs=0.1 * half)
    assert interval["high"] == pytest.approx(interval["mean"] + half, abs=0.1 * half)
    assert bootstrap_ratio(above, below) == interval


def test_bootstrap_without_a_denominator():
    assert bootstrap_ratio(np.array([]), np.array([])) == UNDEFINED
    assert bootstrap_ratio(np.array([1.0, 2.0]), np.array([1.0, -1.0])) == UNDEFINED
    assert bootstrap_ratio(np.array([0.5]), np.array([2.0])) == {"mean": 0.25, "low": None, "high": None}
    unbounded = bootstrap_ratio(np.array([1.0, 1.0]), np.array([3.0, -1.0]))  # a quarter of the resamples has no ratio
    assert unbounded == {"mean": 1.0, "low": None, "high": None}
    rare = bootstrap_ratio(np.ones(5), np.array([0.0, 1.0, 1.0, 1.0, 1.0]))  # 1 of 3,125 resamples has no ratio
    assert rare["low"] == 1.0 and 1.25 < rare["high"] < 5


def test_recovery_by_hand():
    naive, fresh = {0: 0.5, 1: 0.52, 2: 0.54}, {0: 0.9, 1: 0.92, 2: 0.94}
    assert recovery({0: 0.7, 1: 0.72, 2: 0.74}, naive, fresh) == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    assert recovery(naive, naive, fresh) == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert recovery(fresh, naive, fresh) == {"mean": 1.0, "low": 1.0, "high": 1.0}
    spread = recovery({0: 0.6, 1: 0.72, 2: 0.84}, naive, fresh)
    assert spread == pytest.approx({"mean": 0.5, "low": 0.25, "high": 0.75})


def test_recovery_is_a_ratio_of_means_not_a_mean_of_ratios():
    naive, fresh = {0: 0.5, 1: 0.5}, {0: 0.8, 1: 0.8001}
    method = {0: 0.5, 1: 0.8001}
    assert recovery(method, naive, fresh)["mean"] == pytest.approx(0.3001 / 0.6001)


def test_recovery_uses_common_seeds_only():
    naive, fresh = {0: 0.5, 1: 0.5, 7: 0.0}, {0: 0.9, 1: 0.9, 8: 0.1}
    assert recovery({0: 0.8, 1: 0.8, 7: 1.0, 9: 1.0}, naive, fresh)["mean"] == pytest.approx(0.75)
    assert recovery({5: 0.8}, naive, fresh) == UNDEFINED


def test_recovery_is_undefined_where_no_loss_is_shown():
    naive, fresh = {0: 0.5, 1: 0.6, 2: 0.55}, {0: 0.6, 1: 0.55, 2: 0.6}
    assert not excludes_zero(student_interval(np.array([0.1, -0.05, 0.05])))
    assert not excludes_zero(student_interval(np.zeros(3)))  # a bound at zero shows no difference
    assert not excludes_zero({"mean": 0.1, "low": 0.0, "high": 0.2})
    assert not excludes_zero({"mean": -0.1, "low": -0.2, "high": 0.0})
    for method in (naive, fresh, {0: 0.55, 1: 0.57, 2: 0.58}):
        assert recovery(method, naive, fresh) == UNDEFINED
    assert recovery(naive, naive, naive) == UNDEFINED


def test_recovery_with_one_seed_has_no_interval():
    assert recovery({0: 0.8}, {0: 0.5}, {0: 0.9}) == pytest.approx({"mean": 0.75, "low": None, "high": None})
    assert recovery({0: 0.8}, {0: 0.5}, {0: 0.5}) == UNDEFINED


def test_plasticity_ratio():
    assert plasticity_ratio({0: 0.5, 1: 0.3, 2: 1.0}, {0: 0.8, 1: 0.8})["mean"] == pytest.approx(0.5)
    assert plasticity_ratio({0: 0.5}, {}) == UNDEFINED
    assert plasticity_ratio({0: 0.5, 1: 0.4}, {0: 0.0, 1: 0.0}) == UNDEFINED


def stripped(experience, **units):
    return {"experience": experience, "method": "synaptic-stripping", "units": units, "dead": 9}


def recycled(experience, times, **units):
    return {"experience": experience, "method": "continual-backprop", "units": units, "recycled": times}


def whole(experience):
    return {"experience": experience, "method": "fire", "units": {}, "entries": 1000, "parameters": 4}


HIDDEN = [10, 10, 8, 8]  # the third experience has removed two units


@pytest.mark.parametrize(
    ("treatments", "counted", "fresh", "expected"),
    [
        ([], True, False, 0),  # naive, or a method that found nothing to do
        ([], False, False, None),  # another optimizer or network
        ([], True, True, 26),  # a new network three times
        ([stripped(1, a=2, b=1), stripped(2), stripped(3, b=4)], True, False, 7),
        ([recycled(0, 5, a=2), recycled(1, 0)], True, False, 5),  # some of the two units more than once
        ([whole(1), whole(2), whole(3)], True, False, 10 + 10 + 8),
        ([whole(0)], True, False, 10),
        ([stripped(1, a=2), whole(1), recycled(1, 3, a=3)], True, False, 15),  # a combination
        ([stripped(1, a=2)], True, True, 28),
        ([stripped(1, a=2), {"experience": 1, "method": "l2-init", "steps": 320}], True, False, None),
        ([{"experience": 1, "method": "shrink-perturb-step", "steps": 320}], True, False, None),
        ([{"experience": 1, "method": "plasticity-injection", "units": {}, "frozen_parameters": 9}], True, False, None),
        ([{"experience": 1, "method": "mine"}], True, False, None),
        ([stripped(1, a=2)], False, False, None),
    ],
)
def test_treated_units(treatments, counted, fresh, expected):
    assert treated_units(treatments, HIDDEN, counted, fresh) == expected


@pytest.mark.parametrize("count", [2, 3, 6])
def test_geometric_ratio_is_scipys_on_logarithms(count):
    generator = np.random.default_rng(count)
    above, below = 1 + generator.random(count), 1 + generator.random(count)
    interval = geometric_ratio(above, below)
    logs = np.log(above / below)
    low, high = scipy.stats.t.interval(0.95, count - 1, loc=logs.mean(), scale=scipy.stats.sem(logs))
    assert interval["mean"] == pytest.approx(scipy.stats.gmean(above / below))
    assert [interval["low"], interval["high"]] == pytest.approx([math.exp(low), math.exp(high)])
    inverse = geometric_ratio(below, above)
    assert inverse["mean"] == pytest.approx(1 / interval["mean"]) and inverse["low"] == pytest.approx(
        1 / interval["high"]
    )


def test_geometric_ratio_of_nothing():
    assert geometric_ratio(np.array([]), np.array([])) == UNDEFINED
    assert geometric_ratio(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == UNDEFINED
    assert geometric_ratio(np.array([1.0]), np.array([0.0])) == UNDEFINED
    assert geometric_ratio(np.array([3.0]), np.array([2.0])) == pytest.approx({"mean": 1.5, "low": None, "high": None})


def test_relative_time_is_paired():
    assert relative_time({0: 2.0, 1: 8.0, 5: 100.0}, {0: 1.0, 1: 2.0, 7: 1.0})["mean"] == pytest.approx(math.sqrt(8))
    assert relative_time({0: 2.0}, {1: 2.0}) == UNDEFINED


def test_trainability_gap_is_the_mean_of_paired_differences():
    method, fresh = {0: 0.5, 1: 0.6, 3: 0.1}, {0: 0.9, 1: 0.8, 2: 0.7}
    expected = student_interval(np.array([0.9 - 0.5, 0.8 - 0.6]))
    assert trainability_gap(method, fresh) == pytest.approx(expected)
    assert trainability_gap(fresh, fresh)["mean"] == 0
    assert trainability_gap(method, {}) == UNDEFINED


def test_forward_transfer():
    before, untrained = [None, 0.3, 0.5, 0.1], [0.2, 0.1, 0.2, 0.15]
    assert forward_transfer(before, untrained) == pytest.approx(((0.3 - 0.1) + (0.5 - 0.2) + (0.1 - 0.15)) / 3)
    assert forward_transfer([None], [0.1]) is None  # nothing came before
    assert forward_transfer([None, 0.3, None], [0.1, 0.1, None]) is None  # a class or a head that is new
    assert forward_transfer([None, 0.3], [0.1, None]) is None


def result(size: int, seed: int, fresh: bool) -> dict:
    generator = np.random.default_rng(seed)
    units = [
        {
            "layers": {"a": {"size": 4}, "b": {"size": 6 + i}},
            "dead_fraction": float(generator.random()),
            "dormant_fraction": float(generator.random()),
            "effective_rank": float(generator.random()),
        }
        for i in range(size)
    ]
    treatments = [
        stripped(i, a=int(generator.integers(5)), b=1)
        | {name: float(generator.random()) for name in ("output_shift", "accuracy_before", "accuracy_after")}
        for i in range(size)
    ]
    for name in ("accuracy_before", "accuracy_after"):
        del treatments[0][name]  # there is nothing learned before
    return {
        "strategy": "fresh" if fresh else "synaptic-stripping",
        "accuracy_matrix": random_matrix(size, seed, fresh),
        "units": units,
        "treatments": treatments,
        "counts_treated_units": True,
        "online_accuracy": generator.random(size).tolist(),
        "untrained_accuracy": [None if fresh else float(value) for value in generator.random(size)],
        "accuracy_before_learning": [None if fresh else float(value) for value in generator.random(size)],
    }


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_measures_of_a_result_equal_loops(size, fresh):
    content = result(size, seed=size, fresh=fresh)
    found = result_measures(content, fresh)
    assert list(found) == [*ACCURACY_MEASURES, *UNIT_MEASURES, *FURTHER_MEASURES]
    online = area = transfer = shift = damage = treated = 0.0
    for i in range(size):
        online += content["online_accuracy"][i] / size
        area += content["units"][i]["dead_fraction"] / size
        entry = content["treatments"][i]
        shift += entry["output_shift"] / size
        treated += entry["units"]["a"] + entry["units"]["b"]
        if i > 0:
            damage += (entry["accuracy_before"] - entry["accuracy_after"]) / (size - 1)
            if fresh:
                treated += 4 + 6 + i
            else:
                gain = content["accuracy_before_learning"][i] - content["untrained_accuracy"][i]
                transfer += gain / (size - 1)
    expected = slow_measures(content["accuracy_matrix"], fresh)
    expected |= {name: content["units"][-1][name] for name in UNIT_MEASURES}
    expected |= {
        "average_online_accuracy": online,
        "forward_transfer": None if size == 1 or fresh else transfer,
        "dead_unit_area": area,
        "output_shift": shift,
        "accuracy_damage": None if size == 1 else damage,
        "treated_units": treated,
        **dict.fromkeys(("sample_plasticity", "largest_hessian_eigenvalue", "gradient_effective_rank")),
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_what_a_diverged_network_or_an_early_run_lacks_is_undefined():
    content = result(3, seed=0, fresh=False)
    content["treatments"][1]["output_shift"] = None  # not finite
    del content["online_accuracy"], content["untrained_accuracy"]
    content["units"][-1]["effective_rank"] = None
    found = result_measures(content, False)
    for name in ("output_shift", "average_online_accuracy", "forward_transfer", "effective_rank"):
        assert found[name] is None
    assert found["accuracy_damage"] is not None and found["dead_unit_area"] is not None
    assert result_measures(content | {"treatments": []}, False)["accuracy_damage"] is None


def test_measures_that_were_asked_for():
    content = result(3, seed=0, fresh=False)
    for entry, share, eigenvalue in zip(content["units"], [0.5, 0.25, 0.0], [4.0, 3.0, -2.0], strict=True):
        entry.update(sample_plasticity=share, largest_hessian_eigenvalue=eigenvalue, gradient_effective_rank=7.0)
    found = result_measures(content, False)
    assert found["sample_plasticity"] == 0.25
    assert found["largest_hessian_eigenvalue"] == -2.0 and found["gradient_effective_rank"] == 7.0
    content["units"][1]["sample_plasticity"] = None  # diverged
    assert result_measures(content, False)["sample_plasticity"] is None
