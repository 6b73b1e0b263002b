"""Measures of units against plain loops, hand-computed examples, and degenerate input."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from plasticity import measures
from plasticity.errors import UserError


@dataclass
class Counts:
    """What the measures read of a group's statistics."""

    fired: torch.Tensor
    count: int
    mean: torch.Tensor
    mean_abs: torch.Tensor


def counts(mean_abs, fired=None, count=100, device="cpu"):
    mean_abs = torch.tensor(mean_abs, dtype=torch.float64, device=device)
    fired = torch.zeros_like(mean_abs) if fired is None else torch.tensor(fired, device=device)
    return Counts(fired=fired.to(torch.int64), count=count, mean=mean_abs.clone(), mean_abs=mean_abs)


def network():
    """Two units, both dead, and eight, one of them dead: 0.5625 on average over layers, 0.3 over units."""
    return {"narrow": counts([0.0, 0.0], [0, 0]), "wide": counts([0.0, *[1.0] * 7], [0, 95, 94, 96, 100, 1, 50, 2])}


def dormant_by_loops(mean_abs, tau):
    finite = [value for value in mean_abs if math.isfinite(value)]
    average = math.fsum(finite) / len(finite) if finite else 0.0
    marks = []
    for value in mean_abs:
        if not math.isfinite(value):
            marks.append(False)
        elif average == 0:
            marks.append(True)
        else:
            marks.append(value / average <= tau)
    return marks


magnitudes = st.one_of(
    st.just(0.0), st.floats(1e-6, 1e6), st.sampled_from([math.nan, math.inf, 1.0, 0.025, 0.02499, 0.0251])
)


@given(st.lists(magnitudes, min_size=1, max_size=12), st.sampled_from([0.0, 0.01, 0.025, 0.1, 0.5, 1.0]))
def test_masks_agree_with_loops(values, tau):
    stat = counts(values)
    dead, dormant = measures.dead_units(stat), measures.dormant_units(stat, tau)
    assert dead.dtype == dormant.dtype == torch.bool
    assert dead.tolist() == [value == 0 for value in values]
    assert measures.nonfinite_units(stat).tolist() == [not math.isfinite(value) for value in values]
    finite = [value for value in values if math.isfinite(value)]
    average = math.fsum(finite) / len(finite) if finite else 0.0
    for value, mark, expected in zip(values, dormant.tolist(), dormant_by_loops(values, tau), strict=True):
        on_the_edge = average > 0 and math.isclose(value / average, tau, rel_tol=1e-12)
        assert mark == expected or on_the_edge


@given(st.lists(st.lists(magnitudes, min_size=1, max_size=9), min_size=1, max_size=4))
def test_network_fractions_count_units_equally(layers):
    stats = {str(number): counts(layer) for number, layer in enumerate(layers)}
    total = sum(len(layer) for layer in layers)
    dead = sum(value == 0 for layer in layers for value in layer)
    broken = sum(not math.isfinite(value) for layer in layers for value in layer)
    dormant = sum(int(measures.dormant_units(stat, 0.1).sum()) for stat in stats.values())
    assert float(measures.dead_fraction(stats)) == dead / total
    assert float(measures.nonfinite_fraction(stats)) == broken / total
    assert float(measures.dormant_fraction(stats, tau=0.1)) == dormant / total


def test_unequal_layers_by_hand():
    stats = network()
    assert float(measures.dead_fraction(stats)) == 0.3
    assert float(measures.over_active_fraction(stats)) == 0.3  # 95, 96 and 100 of 100, but not 94
    assert float(measures.over_active_fraction(stats, bound=1.0)) == 0.1
    per_layer = measures.by_layer(measures.dead_fraction, stats)
    assert {name: float(value) for name, value in per_layer.items()} == {"narrow": 1.0, "wide": 0.125}
    assert float(measures.dead_fraction(stats["wide"])) == 0.125


def test_dormancy_is_relative_to_the_layers_mean_by_hand():
    stat = counts([0.1, 3.9])  # mean 2: scores 0.05 and 1.95 (over the sum 4 they would be 0.025 and 0.975)
    assert measures.dormant_units(stat, 0.06).tolist() == [True, False]
    assert measures.dormant_units(stat, 0.04).tolist() == [False, False]
    small = {"small": counts([1e-9, 1e-9]), "large": counts([1.0, 1.0])}  # each layer by itself
    assert float(measures.dormant_fraction(small)) == 0.0
    assert measures.dormant_units(counts([0.025, 1.975])).tolist() == [True, False]  # exactly the default threshold


def test_a_layer_all_zero_is_all_dormant():
    assert float(measures.dormant_fraction(counts([0.0, 0.0, 0.0]), tau=0.0)) == 1.0


def test_over_active_holds_at_exactly_the_bound():
    for count in range(20, 2001, 20):
        at = count * 19 // 20
        stat = counts([1.0, 1.0], [at, at - 1], count=count)
        assert measures.over_active_units(stat, 0.95).tolist() == [True, False]
    for percent in range(1, 101):
        assert measures.over_active_units(counts([1.0], [percent]), percent / 100).item()
    big = 2**40 * 20  # counts far beyond what float32 holds
    assert measures.over_active_units(counts([1.0, 1.0], [19 * 2**40, 19 * 2**40 - 1], count=big)).tolist() == [1, 0]


def test_nonfinite_units_are_neither_dead_nor_dormant_and_do_not_hide_others():
    stat = counts([math.nan, math.inf, 0.0, 1.0], [0, 100, 0, 50])
    assert measures.dead_units(stat).tolist() == [False, False, True, False]
    assert measures.dormant_units(stat).tolist() == [False, False, True, False]
    assert measures.over_active_units(stat).tolist() == [False, True, False, False]
    assert float(measures.nonfinite_fraction(stat)) == 0.5
    assert measures.dormant_units(counts([math.nan, math.nan])).tolist() == [False, False]


def test_unobserved_groups_are_left_out():
    unseen = counts([math.nan, 0.0], count=0)
    stats = {"seen": counts([0.0, 1.0]), "unseen": unseen}
    assert float(measures.dead_fraction(stats)) == 0.5
    assert list(measures.by_layer(measures.dormant_fraction, stats, tau=0.1)) == ["seen"]
    masks = (measures.dead_units, measures.dormant_units, measures.over_active_units, measures.nonfinite_units)
    for mask in masks:
        assert mask(unseen).tolist() == [False, False]
    assert not measures.over_active_units(unseen, 0.0).any()


FRACTIONS = (
    measures.dead_fraction,
    measures.dormant_fraction,
    measures.over_active_fraction,
    measures.nonfinite_fraction,
)


@pytest.mark.parametrize("measure", FRACTIONS)
def test_nothing_to_measure_is_a_clear_error(measure):
    for nothing in ({}, {"empty": counts([])}):
        with pytest.raises(UserError, match="no hidden units"):
            measure(nothing)
        with pytest.raises(UserError, match="no hidden units"):
            measures.by_layer(measure, nothing)
    for unseen in ({"a": counts([0.0], count=0)}, counts([0.0], count=0)):
        with pytest.raises(UserError, match="no hidden unit was observed"):
            measure(unseen)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_fractions_outside_0_to_1_are_refused(value):
    stat = counts([1.0])
    for measure in (measures.dormant_units, measures.dormant_fraction):
        with pytest.raises(UserError, match="tau must be between 0 and 1"):
            measure(stat, tau=value)
    for measure in (measures.over_active_units, measures.over_active_fraction):
        with pytest.raises(UserError, match="bound must be between 0 and 1"):
            measure(stat, bound=value)


def test_results_are_float64_scalars_that_compare():
    for measure in FRACTIONS:
        value = measure(network())
        assert value.dim() == 0 and value.dtype == torch.float64
        assert 0.0 <= value <= 1.0


def test_statistics_are_measured_without_reading_back():
    # A tensor without data raises on everything that needs a value on the host.
    stats = {"a": counts([0.0, 1.0], device="meta"), "b": counts([2.0], device="meta")}
    for measure in FRACTIONS:
        assert measure(stats).device.type == "meta"


class RefuseFloat64(TorchDispatchMode):
    """A device without float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert not isinstance(result, torch.Tensor) or result.dtype != torch.float64, func
        return result


def test_devices_without_float64(monkeypatch):
    stats = network()
    expected = [float(measure(stats)) for measure in FRACTIONS]
    for stat in stats.values():
        stat.mean, stat.mean_abs = stat.mean.float(), stat.mean_abs.float()
    monkeypatch.setattr("plasticity.measures.units.working_type", lambda device: torch.float32)
    with RefuseFloat64():
        values = [measure(stats) for measure in FRACTIONS]
    assert [value.dtype for value in values] == [torch.float32] * 4
    assert [float(value) for value in values] == pytest.approx(expected, rel=1e-6)
    big = counts([1.0, 1.0], [19 * 2**40, 19 * 2**40 - 1], count=2**40 * 20)
    with RefuseFloat64():  # whole numbers, which float32 could not tell apart
        assert measures.over_active_units(big, 0.95).tolist() == [True, False]
