"""Gradient dormancy against autograd's own gradients and a loop over units."""

import pytest
import torch
import torch.nn.functional as F
from recycling_cases import CASES, OPTIMIZERS, Case
from torch import nn

from plasticity import UnitGroup, UnitGroups, find_units
from plasticity.errors import UserError
from plasticity.methods.gradient_dormancy import (
    PRESETS,
    GradientDormancyRule,
    gradient_dormant_units,
    recycle_gradient_dormant_units,
)
from plasticity.methods.latest_activity import BatchSums, GradientActivity
from plasticity.probe import Probe


def loss_of(output):
    return (output.flatten(1).square().sum(1) + output.flatten(1).sum(1)).mean()


def watched(case, before=True, x=None):
    """Gradients of a pass as the method sees them; the model's own gradients are thrown away."""
    activity = GradientActivity(case.model, case.units, before=before)
    activity.attach()
    output = case.model(case.x if x is None else x)
    activity.detach()
    loss_of(output).backward()
    case.optimizer.zero_grad()
    return activity


def by_hand(case, before):
    """Mean |gradient| of each unit, from gradients that autograd keeps at the ReLU's input or output."""
    kept = []

    def keep(module, args, output):
        tensor = args[0] if before else output
        tensor.retain_grad()
        kept.append(tensor)

    relu = next(module for module in case.model if isinstance(module, nn.ReLU))
    handle = relu.register_forward_hook(keep)
    loss_of(case.model(case.x)).backward()
    handle.remove()
    case.optimizer.zero_grad()
    gradient = kept[0].grad.double().abs().movedim(1, 0).reshape(case.group.size, -1)
    return [sum(row) / len(row) for row in gradient.tolist()]


def treat(case, activity, **rule):
    case.model.eval()
    return recycle_gradient_dormant_units(
        case.model,
        case.units,
        activity.latest,
        len(case.x),
        Probe([(case.x,)]),
        GradientDormancyRule(**rule),
        case.optimizer,
        torch.Generator(),
        case.initial,
    )


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd(name, before):
    case = Case(name)
    sums = watched(case, before).latest[case.group.name]
    assert (sums.values / sums.count).tolist() == pytest.approx(by_hand(case, before), rel=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_units_that_hardly_learn_are_made_new_and_nothing_else(name, optimizer, monkeypatch):
    case = Case(name, optimizer)
    case.kill([1])
    with torch.no_grad():  # unit 3 is as active as ever, but hardly read, so that it does not learn
        for reader, places in case.net.readers(3).items():
            for place in places:
                case.model.get_submodule(reader).weight[place] *= 1e-4
    case.model.eval()  # running statistics stay
    case.remember()
    means = by_hand(case, True)
    layer = sum(means) / len(means)
    chosen = [unit for unit, mean in enumerate(means) if mean / layer <= 0.025]
    assert {1, 3} <= set(chosen) < set(range(case.group.size))
    report = treat(case, watched(case))
    assert report.units == {case.group.name: chosen}
    assert report.counts == {"dormant": len(chosen), "recycled": len(chosen)}
    assert report.samples == 40
    assert report.output_shift > 0
    case.check_renewed(chosen, monkeypatch)


@pytest.mark.parametrize("name", CASES)
def test_recycled_dead_units_leave_the_outputs_unchanged(name, monkeypatch):
    case = Case(name)
    case.kill([0, 2])
    case.model.eval()
    before = case.model(case.x)
    case.optimizer.zero_grad()
    report = treat(case, watched(case), tau=0.0)
    assert report.units == {case.group.name: [0, 2]}
    assert report.output_shift == 0
    assert torch.equal(case.model(case.x), before)
    case.check_renewed([0, 2], monkeypatch)


def test_behind_the_activation_a_dead_unit_has_a_gradient():
    case = Case("linear")
    case.kill([1])
    before, after = watched(case).latest["0"].values, watched(case, before=False).latest["0"].values
    assert before[1] == 0
    assert after[1] > 0


def test_which_units_are_dormant():
    sums = BatchSums(torch.tensor([0.0, 0.1, 0.11, 4.0, float("nan"), float("inf"), 3.79]), 10)  # mean 1.6
    assert gradient_dormant_units(sums, 0.0).nonzero().flatten().tolist() == [0]
    assert gradient_dormant_units(sums, 0.065).nonzero().flatten().tolist() == [0, 1]
    assert gradient_dormant_units(sums, 1.0).nonzero().flatten().tolist() == [0, 1, 2]
    assert not gradient_dormant_units(BatchSums(torch.zeros(3), 10), 0.5).any()  # no gradient reached the layer


@pytest.mark.parametrize(("share", "expected"), [(0.0, []), (0.25, [2, 5]), (0.2, [2]), (1.0, [1, 2, 5])])
def test_the_most_dormant_go_first_where_not_all_may(share, expected):
    case = Case("linear")
    activity = watched(case)
    values = torch.ones(8)
    values[[1, 5, 2]] = torch.tensor([1e-2, 1e-3, 1e-4])
    activity.latest = {"0": BatchSums(values, 40)}
    report = treat(case, activity, maximum_share=share)
    assert report.units.get("0", []) == expected
    assert report.counts["dormant"] == 3


def test_the_authors_zero_the_second_moments(monkeypatch):
    assert PRESETS["liu2025"] == GradientDormancyRule(moments="zero")
    case = Case("linear")
    case.kill([3])
    treat(case, watched(case), tau=0.0, moments="zero")
    case.check_renewed([3], monkeypatch, moments="zero")


class Functional(nn.Module):
    """In-place and functional activations."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = F.relu(self.one(x), inplace=True)
        h = h * 2
        return self.three(torch.tanh(self.two(h)))


def test_functional_and_in_place_activations():
    model, x = Functional(), torch.randn(12, 6)
    activity = GradientActivity(model, find_units(model, x[:2]))
    gradients = {}
    for name in "one", "two":  # a hook stays with what the tensor was before it is changed in place

        def keep(module, args, output, name=name):
            output.register_hook(lambda gradient: gradients.__setitem__(name, gradient))

        model.get_submodule(name).register_forward_hook(keep)
    activity.attach()
    output = model(x)
    activity.detach()
    loss_of(output).backward()
    assert set(activity.latest) == {"one", "two"}
    for name, gradient in gradients.items():
        torch.testing.assert_close(activity.latest[name].values, gradient.abs().sum(0))


def test_passes_without_a_gradient_count_for_nothing():
    case = Case("linear")
    activity = GradientActivity(case.model, case.units)
    activity.attach()
    with torch.no_grad():
        case.model(case.x)
    for parameter in case.model[0].parameters():
        parameter.requires_grad_(False)
    loss_of(case.model(case.x)).backward()
    activity.detach()
    assert activity.latest == {}


def test_a_site_that_is_no_activation_is_refused_with_the_way_out():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), nn.Flatten(), nn.Linear(3, 2))
    groups = UnitGroups([UnitGroup("0", size=3, activation="relu", at="1", consumers=[("3", 1)])])
    x = torch.randn(4, 1, 4, 4)
    for before in True, False:
        activity = GradientActivity(model, groups, before=before)
        activity.attach()
        output = model(x)
        activity.detach()
        if before:
            with pytest.raises(UserError, match="'0'.*gradient=\"after\""):
                loss_of(output).backward()
        else:
            loss_of(output).backward()
            assert activity.latest["0"].count == 4


@pytest.mark.parametrize("name", CASES)
def test_watching_does_not_wait_for_the_device(name):
    case = Case(name)
    case.model = case.model.to("meta")
    activity = watched(case, x=torch.randn(case.net.shape, device="meta"))
    assert activity.latest[case.group.name].values.device.type == "meta"


@pytest.mark.parametrize("rule", [{"tau": -1}, {"maximum_share": 3}, {"gradient": "beside"}], ids=str)
def test_rules_without_meaning_are_refused(rule):
    with pytest.raises(UserError, match=next(iter(rule))):
        GradientDormancyRule(**rule)
