"""Which way a layer's output points when an activation sees it, against gradients, and what stripping makes of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plasticity import find_units, measures, watch
from plasticity.methods.synaptic_stripping import PRESETS, strip_dead_units
from plasticity.probe import Probe
from plasticity.surgery.masks import Masks

CHANGES = {
    "as it is": (lambda h: h, 1),
    "negated": (lambda h: -h, -1),
    "negated twice": (lambda h: (-h).neg(), 1),
    "times a negative number": (lambda h: h * -0.5, -1),
    "a negative number times it": (lambda h: -0.5 * h, -1),
    "over a negative number": (lambda h: h / -2, -1),
    "one minus it": (lambda h: 1 - h, -1),
    "it minus one": (lambda h: h - 1, 1),
    "minus twice itself": (lambda h: torch.add(torch.zeros_like(h), h, alpha=-2), -1),
    "in place": (lambda h: h.neg_(), -1),
    "through views": (lambda h: -h.view(-1, 2, 3).transpose(1, 2).transpose(1, 2).reshape(-1, 6), -1),
    "its exponential": (lambda h: h.exp(), 1),
    "clamped, turned": (lambda h: -h.clamp(-1, 1), -1),
    "a sum of both signs": (lambda h: h + -2 * h, 0),
    "its magnitude": (lambda h: h.abs(), 0),
    "its square": (lambda h: h**2, 0),
    "over it": (lambda h: 1 / h, 0),
    "times tensors of one sign": (lambda h: h * torch.full((6,), -2.0), -1),
    "times tensors of both signs": (lambda h: h * torch.tensor([1.0, -1, 1, -1, 1, 1]), 0),
}


class Changed(nn.Module):
    """Something is done to a layer's output before its activation."""

    def __init__(self, change, norm=False):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.change = change

    def before(self, x):
        h = self.first(x)
        return h, self.change(self.norm(h * 1.0))

    def forward(self, x):
        return self.last(F.relu(self.before(x)[1]))


@pytest.mark.parametrize("name", CHANGES)
def test_direction_is_the_sign_of_the_gradient(name):
    torch.manual_seed(0)
    change, direction = CHANGES[name]
    model = Changed(change)
    (group,) = find_units(model, torch.randn(8, 4))
    assert [write.direction for write in group.writes] == [direction] * len(group.writes)
    if direction:
        h, seen = model.before(torch.randn(64, 4))
        (gradient,) = torch.autograd.grad(seen.sum(), h)
        assert bool((gradient * direction >= 0).all()) and bool((gradient != 0).any())


def test_of_two_layers_one_may_be_subtracted():
    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(F.relu(self.a(x) - self.b(x)))

    (group,) = find_units(Difference(), torch.randn(2, 4))
    assert {write.layer: write.direction for write in group.writes} == {"a": 1, "b": -1}


def test_behind_a_normaliser_only_what_is_turned_after_it_is_known():
    x = torch.randn(8, 4)
    (group,) = find_units(Changed(lambda h: -h, norm=True), x)
    assert group.norm == "norm" and group.writes[0].direction == -1

    class Before(Changed):
        def forward(self, x):
            return self.last(F.relu(self.norm(-self.first(x))))

    (group,) = find_units(Before(None, norm=True), x)
    assert group.writes[0].direction == 0


def dead_fraction(model, x):
    with watch(model, find_units(model, x)) as activity, torch.no_grad():
        model(x)
    return float(measures.dead_fraction(activity.statistics()))


@pytest.mark.parametrize(("name", "sign"), [("as it is", 1), ("negated", -1), ("one minus it", -1)])
def test_stripping_revives_units_that_are_turned_round(name, sign):
    torch.manual_seed(0)
    model, x = Changed(CHANGES[name][0]), torch.rand(64, 4)
    with torch.no_grad():
        model.first.weight[:3] = sign * torch.tensor([-3.0, -2.0, -3.0, 0.5])
        model.first.bias[:3] = 0.0
    dead = dead_fraction(model, x)
    before = model.first.weight.detach().clone()
    report = strip_dead_units(model, find_units(model, x), Probe([(x,)]), Masks(), PRESETS["default"])
    assert dead >= 0.5 and report.counts["stripped"] == round(6 * dead) and dead_fraction(model, x) == 0
    gone = (model.first.weight == 0) & (before != 0)
    assert bool(gone.any()) and bool((before[gone] * sign < 0).all())


@pytest.mark.parametrize(("name", "bias"), [("as it is", -5.0), ("negated", 5.0)])
def test_biases_that_hold_units_down_become_zero(name, bias):
    torch.manual_seed(0)
    model, x = Changed(CHANGES[name][0]), torch.rand(64, 4)
    with torch.no_grad():
        model.first.bias[:3] = bias
        model.first.weight[:3] = 1.0 if bias < 0 else -1.0  # no connection holds them down
        model.first.bias[3:] = -bias
    report = strip_dead_units(model, find_units(model, x), Probe([(x,)]), Masks(), PRESETS["default"])
    assert report.counts["fallback"] == 3 and bool((model.first.bias[:3] == 0).all())
    assert bool((model.first.bias[3:] == -bias).all()) and dead_fraction(model, x) == 0


def test_where_the_sign_is_not_known_nothing_is_stripped():
    torch.manual_seed(0)
    model, x = Changed(lambda h: -h.abs()), torch.rand(64, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = strip_dead_units(model, find_units(model, x), Probe([(x,)]), Masks(), PRESETS["default"])
    assert report.counts["dead"] == 6 and report.counts["stripped"] == report.counts["fallback"] == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
