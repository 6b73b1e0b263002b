"""Continual backprop against plain lists and loops: utilities, ages, who is replaced, what replaced units become."""

import math

import pytest
import torch
from recycling_cases import CASES, OPTIMIZERS, Case
from torch import nn

from plasticity import find_units
from plasticity.errors import UserError
from plasticity.methods.continual_backprop import PRESETS, ContinualBackprop, ContinualBackpropRule
from plasticity.methods.latest_activity import MagnitudeActivity
from plasticity.methods.outgoing import OutgoingMagnitude
from plasticity.methods.recycling import initial_values, private_groups


class Reference:
    """The rule, unit by unit, in Python numbers."""

    def __init__(self, size, rate, maturity, decay, weights_every=1):
        self.rate, self.maturity, self.decay, self.weights_every, self.updates = rate, maturity, decay, weights_every, 0
        self.utility, self.age, self.mean, self.owed = [0.0] * size, [0] * size, [0.0] * size, 0.0

    def step(self, magnitudes, means, outgoing):
        if self.updates % self.weights_every == 0:
            self.outgoing = outgoing
        self.updates += 1
        outgoing = self.outgoing
        for unit, (magnitude, mean, weight) in enumerate(zip(magnitudes, means, outgoing, strict=True)):
            self.utility[unit] = self.decay * self.utility[unit] + (1 - self.decay) * magnitude * weight
            self.mean[unit] = self.decay * self.mean[unit] + (1 - self.decay) * mean
            self.age[unit] += 1
        mature = [unit for unit, age in enumerate(self.age) if age > self.maturity]
        self.owed += self.rate * len(mature)
        number = math.floor(self.owed)
        self.owed -= number
        mature.sort(key=lambda unit: self.utility[unit] / (1 - self.decay ** self.age[unit]))
        gone = {unit: self.mean[unit] / (1 - self.decay ** self.age[unit]) for unit in sorted(mature[:number])}
        for unit in gone:
            self.utility[unit], self.age[unit], self.mean[unit], self.outgoing[unit] = 0.0, 0, 0.0, 0.0
        return gone


def outgoing_by_hand(case):
    """Sum of |w| over the weights that read each unit."""
    sums = []
    for unit in range(case.group.size):
        total = 0.0
        for reader, places in case.net.readers(unit).items():
            weight = case.model.get_submodule(reader).weight
            total += sum(float(weight.detach()[place].abs().double().sum()) for place in places)
        sums.append(total)
    return sums


def run(case, method, reference, steps, monkeypatch, **settings):
    """Train, and compare every step; returns the units replaced at each."""
    activity = MagnitudeActivity(case.model, case.units, means=True)
    replaced = []
    for _ in range(steps):
        x = torch.randn(8, *case.net.shape[1:])
        h = case.activations(x).double()
        with activity_on(activity):
            output = case.model(x)
        case.optimizer.zero_grad()
        (output.flatten(1).square().mean() + output.mean()).backward()
        case.optimizer.step()
        case.remember()
        gone = reference.step(h.abs().mean(0).tolist(), h.mean(0).tolist(), outgoing_by_hand(case))
        number = method.step(
            case.model,
            activity.units,
            activity.latest,
            case.optimizer,
            torch.Generator(),
            case.initial,
            activity.signed,
        )
        activity.clear()
        assert number == len(gone)
        settings.get("check", lambda gone: case.check_renewed(list(gone), monkeypatch))(gone)
        replaced.append(list(gone))
    return replaced


class activity_on:  # noqa: N801  # reads as a word
    def __init__(self, activity):
        self.activity = activity

    def __enter__(self):
        self.activity.attach()

    def __exit__(self, *error):
        self.activity.detach()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_the_least_useful_mature_units_are_replaced_step_by_step(name, optimizer, monkeypatch):
    case, weights_every = Case(name, optimizer), {"sgd": 1, "adam": 4, "adamw": 2}[optimizer]
    rule = ContinualBackpropRule(replacement_rate=0.11, maturity=3, decay=0.8, weights_every=weights_every)
    reference = Reference(case.group.size, 0.11, 3, 0.8, weights_every)
    method = ContinualBackprop(rule)
    replaced = run(case, method, reference, 16, monkeypatch)
    assert replaced[:3] == [[], [], []]
    assert len([gone for gone in replaced if gone]) >= 4
    state = method.state_dict()[case.group.name]
    assert state["age"].tolist() == reference.age
    assert state["utility"].tolist() == pytest.approx(reference.utility, rel=1e-4)
    counts = method.replacements()[case.group.name]
    assert counts == [sum(unit in gone for gone in replaced) for unit in range(case.group.size)]
    assert method.replacements()[case.group.name] == [0] * case.group.size


def test_the_paper_has_sums_and_its_code_means_and_a_rate_of_0_does_nothing(monkeypatch):
    assert PRESETS["default"] == ContinualBackpropRule(1e-4, 100, 0.99, "sum", False, 10, "young")
    assert (PRESETS["dohare2024-resnet"].replacement_rate, PRESETS["dohare2024-resnet"].maturity) == (1e-5, 1000)
    case = Case("linear")
    summed, averaged = (OutgoingMagnitude(average=a).of(case.model, case.group) for a in (False, True))
    assert summed.tolist() == pytest.approx(outgoing_by_hand(case))
    assert averaged.tolist() == pytest.approx([value / 5 for value in outgoing_by_hand(case)])
    method = ContinualBackprop(ContinualBackpropRule(replacement_rate=0, maturity=0))
    assert run(case, method, Reference(8, 0, 0, 0.99), 3, monkeypatch) == [[], [], []]


def test_all_replaced_at_once_and_again_when_mature(monkeypatch):
    case = Case("linear")
    method = ContinualBackprop(ContinualBackpropRule(replacement_rate=1, maturity=1))
    everyone = list(range(8))
    replaced = run(case, method, Reference(8, 1, 1, 0.99, 10), 6, monkeypatch)
    assert replaced == [[], everyone, [], everyone, [], everyone]


@pytest.mark.parametrize("name", ["linear", "flatten", "grouped", "batch norm"])
def test_what_a_unit_brought_on_average_can_be_left_with_its_readers(name, monkeypatch):
    case = Case(name)
    rule = ContinualBackpropRule(replacement_rate=0.3, maturity=2, decay=0.5, transfer=True, weights_every=1)
    biases = [0]

    def check(gone):
        for reader in case.net.readers(0):
            module = case.model.get_submodule(reader)
            expected = case.before[f"{reader}.bias"].double().clone()
            old = case.before[f"{reader}.weight"].double()
            for unit, mean in gone.items():
                part = torch.zeros_like(old)
                for place in case.net.readers(unit)[reader]:
                    part[place] = old[place] * mean
                expected += part.flatten(1).sum(1)
                biases[0] += 1
            torch.testing.assert_close(module.bias.detach().double(), expected, rtol=1e-4, atol=1e-6)

    run(case, ContinualBackprop(rule), Reference(case.group.size, 0.3, 2, 0.5), 6, monkeypatch, check=check)
    assert biases[0] > 2


def test_units_with_broken_utilities_are_kept_and_immature_ones_never_taken():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    units = find_units(model, torch.randn(2, 4))
    method = ContinualBackprop(ContinualBackpropRule(replacement_rate=0.5, maturity=0))
    activity = MagnitudeActivity(model, units)
    with torch.no_grad():
        model[2].weight[:, :4] = torch.tensor([float("nan"), float("inf"), 3.0, 2.0])
    with activity_on(activity):
        model(torch.ones(2, 4))
    before = model[2].weight.clone()
    assert method.step(model, activity.units, activity.latest, initial=initial_values(model)) == 3
    changed = (model[2].weight != before).any(0) & ~before.isnan().any(0)
    assert not changed[1]
    assert changed.sum() == 3


def test_restored_state_goes_on_alike(monkeypatch):
    case, rule = Case("linear"), ContinualBackpropRule(replacement_rate=0.11, maturity=2, decay=0.9, weights_every=5)
    reference, method = Reference(8, 0.11, 2, 0.9, 5), ContinualBackprop(rule)
    run(case, method, reference, 6, monkeypatch)
    state = method.state_dict()
    other = ContinualBackprop(rule)
    other.load_state_dict(state)
    assert str(other.state_dict()) == str(state)
    assert any(run(case, other, reference, 8, monkeypatch))
    assert str(method.state_dict()) == str(state)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("transfer", [False, True])
def test_a_step_does_not_wait_for_the_device(name, transfer):
    # A tensor without data raises on everything that needs a value on the host.
    case = Case(name)
    model = case.net.build().to("meta")
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    for parameter in model.parameters():
        optimizer.state[parameter] = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
    activity = MagnitudeActivity(model, case.units, means=True)
    rule = ContinualBackpropRule(replacement_rate=0.3, maturity=2, transfer=transfer)
    method, initial, replaced = ContinualBackprop(rule), initial_values(model), 0
    for _ in range(6):
        with activity_on(activity):
            model(torch.randn(case.net.shape, device="meta"))
        replaced += method.step(
            model, activity.units, activity.latest, optimizer, torch.Generator(), initial, activity.signed
        )
        activity.clear()
    assert replaced >= 3


def test_groups_that_no_sample_reached_are_left_alone():
    case = Case("linear")
    method = ContinualBackprop(ContinualBackpropRule(replacement_rate=1, maturity=0))
    assert method.step(case.model, private_groups(case.all_units), {}) == 0
    assert method.state_dict() == {}
    assert method.replacements() == {}


@pytest.mark.parametrize(
    "rule",
    [
        {"replacement_rate": -1},
        {"decay": 1.0},
        {"maturity": -1},
        {"maturity": 2.5},
        {"weights_every": 0},
        {"outgoing": "max"},
    ],
    ids=str,
)
def test_rules_without_meaning_are_refused(rule):
    with pytest.raises(UserError, match=next(iter(rule))):
        ContinualBackpropRule(**rule)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.LeakyReLU, nn.ELU, nn.GELU, nn.ReLU])
def test_magnitudes_are_those_of_activations_of_either_sign(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3))
    x = torch.randn(20, 4)
    units = find_units(model, x[:2])
    activity = MagnitudeActivity(model, units, means=True)
    activity.attach()
    for part in x.split(7):
        model(part)
    activity.detach()
    h = model[1](model[0](x)).detach()
    (seen,), (signed,) = activity.latest.values(), activity.signed.values()
    assert seen.count == signed.count == 20
    torch.testing.assert_close(seen.values, h.abs().sum(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(signed.values, h.sum(0), rtol=1e-4, atol=1e-5)
