"""Self-normalized resets against plain lists and loops: ages, thresholds, who is due, what new units are."""

import math

import pytest
import torch
from recycling_cases import CASES, OPTIMIZERS, Case
from torch import nn

from plasticity import find_units
from plasticity.errors import UserError
from plasticity.methods.latest_activity import BatchSums, MagnitudeActivity
from plasticity.methods.recycling import initial_values
from plasticity.methods.self_normalized_resets import (
    PRESETS,
    SILENT_ACTIVATIONS,
    SelfNormalizedResets,
    SelfNormalizedResetsRule,
)


class Reference:
    """The rule, unit by unit, in Python numbers."""

    def __init__(self, size, rule):
        self.rule, self.size, self.updates, self.largest = rule, size, 0, 1
        self.age, self.threshold = [0] * size, [rule.maximum_age] * size
        self.stretches, self.due = [[] for _ in range(size)], [False] * size
        self.bounds = [1]
        while self.bounds[-1] < rule.maximum_age:
            longer = max(self.bounds[-1] + 1, math.floor(self.bounds[-1] * 1.1))
            self.bounds.append(min(longer, rule.maximum_age))

    def beyond(self, stretch):
        """The begin of the next bin."""
        return next((bound for bound in self.bounds if bound > stretch), self.rule.maximum_age)

    def step(self, fired, samples):
        rule = self.rule
        self.largest = max(self.largest, samples)
        self.updates += 1
        for unit in range(self.size):
            if fired[unit] and not self.due[unit]:
                self.stretches[unit].append(self.age[unit])
                self.age[unit] = 0
            else:
                self.age[unit] += samples
            if self.age[unit] >= self.threshold[unit]:
                self.due[unit] = True
        gone = []
        if self.updates % rule.check_every == 0:
            room = math.ceil(rule.maximum_share * self.size)
            gone = [unit for unit in range(self.size) if self.due[unit]][:room]
            for unit in gone:
                self.stretches[unit].append(self.age[unit])
                self.age[unit], self.due[unit] = 0, False
        if self.updates % rule.refresh == 0:
            for unit, stretches in enumerate(self.stretches):
                if len(stretches) >= rule.enough:
                    stretches.sort()
                    place = max(math.ceil(rule.percentile * len(stretches) - 1e-3), 1)
                    found = self.beyond(stretches[place - 1])
                    new = found if found <= self.threshold[unit] else int(self.threshold[unit] * rule.expansion)
                    self.threshold[unit] = max(min(new, rule.maximum_age), min(self.largest, rule.maximum_age))
                    stretches.clear()
        return gone


RULES = {
    "all at once": {"maximum_age": 60, "refresh": 6, "enough": 1, "check_every": 1, "maximum_share": 1.0},
    "a few": {"maximum_age": 40, "refresh": 7, "enough": 3, "check_every": 3, "maximum_share": 0.25},
    "long": {"maximum_age": 500, "refresh": 10, "enough": 5, "check_every": 2, "maximum_share": 0.5, "percentile": 0.7},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("name", CASES)
def test_units_silent_for_too_long_are_made_new_step_by_step(name, kind, optimizer, monkeypatch):
    case, rule = Case(name, optimizer), SelfNormalizedResetsRule(**RULES[kind])
    size = case.group.size
    reference, method = Reference(size, rule), SelfNormalizedResets(rule)
    rates = torch.linspace(0, 1, size)  # one unit never fires, one always
    total, generator = 0, torch.Generator()
    for number in range(60):
        samples = 5 if number % 10 == 9 else 8
        fired = torch.rand(size) < (rates if number < 40 else rates.flip(0))
        if number % 4 == 0:
            case.update()
        case.remember()
        gone = reference.step(fired.tolist(), samples)
        sums = {case.group.name: BatchSums(3 * fired.to(torch.int32), 8)}
        checked = method.step(case.model, case.units, sums, samples, case.optimizer, generator, case.initial)
        assert checked == ((number + 1) % rule.check_every == 0)
        if gone or number % 10 == 0:
            case.check_renewed(gone, monkeypatch)
        state = method.state_dict()["units"][case.group.name]
        assert state["age"].tolist() == reference.age
        assert state["threshold"].tolist() == reference.threshold
        assert state["due"].tolist() == reference.due
        total += len(gone)
    assert total >= 3
    assert len(set(reference.threshold)) > 1
    assert sum(method.replacements()[case.group.name]) == total
    assert sum(method.replacements()[case.group.name]) == 0


def test_defaults():
    default = PRESETS["default"]
    assert (default.percentile, default.maximum_age, default.expansion) == (0.98, 20_000, 2.0)
    assert PRESETS["farias2025"] == SelfNormalizedResetsRule(enough=1, check_every=1, maximum_share=1.0, moments="zero")


@pytest.mark.parametrize("name", CASES)
def test_a_unit_fires_where_any_sample_at_any_position_is_above_0(name):
    case = Case(name)
    activity = MagnitudeActivity(case.model, case.units, activations=SILENT_ACTIVATIONS)
    with torch.no_grad():
        writer = case.model.get_submodule(case.group.norm or case.group.name)
        writer.bias[0] = -1e4
    activity.attach()
    case.model(case.x)
    activity.detach()
    expected = (case.activations() > 0).any(0)
    assert torch.equal(activity.latest[case.group.name].values > 0, expected)
    assert expected.tolist() == [unit > 0 for unit in range(case.group.size)]
    activity.clear()
    assert activity.latest == {}


@pytest.mark.parametrize("name", CASES)
def test_dead_units_made_new_leave_the_outputs_unchanged_and_fire_again(name):
    case = Case(name)
    case.kill([1])
    rule = SelfNormalizedResetsRule(maximum_age=80, check_every=1, maximum_share=1.0)
    method = SelfNormalizedResets(rule)
    activity = MagnitudeActivity(case.model, case.units)
    case.model.eval()
    before = case.model(case.x)
    for _ in range(2):
        activity.attach()
        case.model(case.x)
        activity.detach()
        method.step(case.model, activity.units, activity.latest, 40, case.optimizer, torch.Generator(), case.initial)
        activity.clear()
    assert method.replacements()[case.group.name] == [unit == 1 for unit in range(case.group.size)]
    assert torch.equal(case.model(case.x), before)
    assert (case.activations(torch.randn(300, *case.net.shape[1:]))[:, 1] > 0).any()


def test_only_units_that_can_be_silent_are_judged():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    units = find_units(model, torch.randn(2, 4))
    activity = MagnitudeActivity(model, units, activations=SILENT_ACTIVATIONS)
    assert [group.name for group in activity.units] == ["2"]
    assert "gelu" in activity.skipped["0"]
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with pytest.raises(UserError, match="'0'.*tanh"):
        MagnitudeActivity(model, find_units(model, torch.randn(2, 4)), activations=SILENT_ACTIVATIONS)


@pytest.mark.parametrize("name", CASES)
def test_a_step_does_not_wait_for_the_device(name):
    # A tensor without data raises on everything that needs a value on the host.
    case = Case(name)
    model = case.net.build().to("meta")
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    for parameter in model.parameters():
        optimizer.state[parameter] = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
    activity, initial = MagnitudeActivity(model, case.units), initial_values(model)
    method = SelfNormalizedResets(SelfNormalizedResetsRule(check_every=2, refresh=3))
    checks = 0
    for _ in range(6):
        activity.attach()
        model(torch.randn(case.net.shape, device="meta"))
        activity.detach()
        checks += method.step(model, activity.units, activity.latest, 7, optimizer, torch.Generator(), initial)
        activity.clear()
    assert checks == 3


def test_restored_state_goes_on_alike():
    case = Case("linear")
    rule = SelfNormalizedResetsRule(**RULES["a few"])
    method, other = SelfNormalizedResets(rule), SelfNormalizedResets(rule)
    states = []
    for number in range(30):
        if number == 11:
            other.load_state_dict(method.state_dict())
        sums = {"0": BatchSums((torch.rand(8) < 0.3).to(torch.int32), 8)}
        for which in (method,) if number < 11 else (method, other):
            which.step(case.model, case.units, sums, 8, None, torch.Generator(), case.initial)
        states.append(str(method.state_dict()))
    assert str(other.state_dict()) == states[-1] != states[-2]


@pytest.mark.parametrize(
    "rule",
    [{"percentile": 1.5}, {"maximum_age": 0}, {"refresh": 2.5}, {"expansion": 0.5}, {"check_every": True}],
    ids=str,
)
def test_rules_without_meaning_are_refused(rule):
    with pytest.raises(UserError, match=next(iter(rule))):
        SelfNormalizedResetsRule(**rule)
