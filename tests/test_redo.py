"""ReDo against a plain loop over units: which are dormant, what they become, and that dead ones cost nothing."""

import pytest
import torch
from recycling_cases import CASES, OPTIMIZERS, Case

from plasticity.errors import UserError
from plasticity.methods.redo import PRESETS, ReDoRule, recycle_dormant_units
from plasticity.probe import Probe


def treat(case, **rule):
    probe = Probe([(case.x[:25],), (case.x[25:],)])
    generator = torch.Generator().manual_seed(0)
    return recycle_dormant_units(
        case.model, case.units, probe, ReDoRule(**rule), case.optimizer, generator, case.initial
    )


def dormant_by_hand(case, tau):
    """Score each unit alone: mean magnitude over samples and positions, over the mean of the layer."""
    case.model.eval()
    columns = case.activations().double().abs().T.tolist()
    case.model.train()
    means = [sum(column) / len(column) for column in columns]
    layer = sum(means) / len(means)
    return [unit for unit, mean in enumerate(means) if mean / layer <= tau], means


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_dormant_units_are_made_new_and_nothing_else(name, optimizer, monkeypatch):
    case = Case(name, optimizer)
    case.kill([1])
    case.weaken(3)
    chosen, means = dormant_by_hand(case, 0.05)
    assert {1, 3} <= set(chosen) < set(range(case.group.size))
    report = treat(case, tau=0.05)
    assert report.units == {case.group.name: chosen}
    dead = sum(mean == 0 for mean in means)
    assert report.counts == {"dormant": len(chosen), "dead": dead, "recycled": len(chosen)}
    assert report.samples == 40
    assert report.output_shift > 0
    case.check_renewed(chosen, monkeypatch)


@pytest.mark.parametrize("name", CASES)
def test_recycled_dead_units_leave_the_outputs_unchanged_and_fire_again(name, monkeypatch):
    case = Case(name)
    case.kill([0, 2])
    case.model.eval()
    before = case.model(case.x)
    report = treat(case, tau=0.0)
    assert torch.equal(case.model(case.x), before)
    assert report.output_shift == 0
    assert report.units == {case.group.name: [0, 2]}
    assert (case.activations(torch.randn(300, *case.net.shape[1:]))[:, [0, 2]] > 0).any(0).all()
    case.check_renewed([0, 2], monkeypatch)


@pytest.mark.parametrize(("share", "expected"), [(0.0, []), (0.25, [2, 5]), (0.2, [2]), (1.0, [1, 2, 5])])
def test_the_most_dormant_go_first_where_not_all_may(share, expected, monkeypatch):
    case = Case("linear")
    with torch.no_grad():  # scores of unit 2 < 5 < 1 < others
        weight, bias = case.model[0].weight, case.model[0].bias
        for unit, size in (1, 1e-3), (5, 1e-4), (2, 1e-5):
            weight[unit] = 0
            bias[unit] = size
    case.remember()
    report = treat(case, maximum_share=share)
    assert report.units.get("0", []) == expected
    assert report.counts["dormant"] == 3
    case.check_renewed(expected, monkeypatch)


def test_the_authors_zero_the_second_moments(monkeypatch):
    assert PRESETS["sokar2023"] == ReDoRule(tau=0.025, moments="zero")
    assert PRESETS["dopamine"].tau == 0
    case = Case("linear")
    case.kill([3])
    treat(case, tau=0.0, moments="zero")
    case.check_renewed([3], monkeypatch, moments="zero")


def test_a_layer_of_dead_units_is_all_made_new():
    case = Case("linear")
    case.kill(list(range(8)))
    assert treat(case).units["0"] == list(range(8))


def test_each_group_is_judged_by_its_own_layer():
    case = Case("flatten")
    case.units = case.all_units
    assert len(case.units) == 2
    with torch.no_grad():
        case.model[4].weight.mul_(1e-4), case.model[4].bias.fill_(1e-4)  # all weak, but alike
        case.model[4].bias[3] = -1
    case.remember()
    report = treat(case)
    assert report.units == {"4": [3]}


@pytest.mark.parametrize("rule", [{"tau": -0.1}, {"tau": 2}, {"maximum_share": 1.5}, {"moments": "half"}], ids=str)
def test_rules_without_meaning_are_refused(rule):
    with pytest.raises(UserError, match=next(iter(rule))):
        ReDoRule(**rule)
