"""Methods that judge the units of all layers at once, against one instance of the method for each layer."""

import copy
import pickle

import pytest
import torch
from step_driver import mlp

from plasticity import UnitGroups, find_units
from plasticity.methods.continual_backprop import ContinualBackprop, ContinualBackpropRule
from plasticity.methods.latest_activity import BatchSums
from plasticity.methods.recycling import initial_values
from plasticity.methods.self_normalized_resets import SelfNormalizedResets, SelfNormalizedResetsRule


def continual_backprop(**rule):
    return ContinualBackprop(ContinualBackpropRule(replacement_rate=0.07, maturity=3, weights_every=2, **rule))


def resets():
    rule = SelfNormalizedResetsRule(maximum_age=30, refresh=4, enough=2, check_every=3, maximum_share=0.3)
    return SelfNormalizedResets(rule)


METHODS = {
    "continual-backprop": continual_backprop,
    "transfer": lambda: continual_backprop(transfer=True),
    "self-normalized-resets": resets,
}


class Network:
    """A network and its optimizer after a few steps, alike every time."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = mlp(3, 10)
        self.units, self.initial = find_units(self.model, torch.randn(2, 5)), initial_values(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.generator = torch.Generator().manual_seed(1)
        self.update()

    def update(self):
        self.optimizer.zero_grad()
        self.model(torch.linspace(-1, 1, 30).view(6, 5)).square().mean().backward()
        self.optimizer.step()

    def step(self, method, units, sums):
        if isinstance(method, SelfNormalizedResets):
            method.step(self.model, units, sums, 6, self.optimizer, self.generator, self.initial)
        else:
            method.step(self.model, units, sums, self.optimizer, self.generator, self.initial, sums)

    def numbers(self):
        state = self.optimizer.state_dict()["state"]
        return [*self.model.state_dict().values(), *(each for of in state.values() for each in of.values())]


def seen_in(number, units, draw):
    """Random sums, of all layers in most mini-batches, of some of them in others; a few units are silent for long."""
    sums = {}
    for place, group in enumerate(units):
        if number % 5 or (number // 5 + place) % 2:
            fires = torch.rand(group.size, generator=draw) < torch.linspace(0.05, 0.9, group.size)
            sums[group.name] = BatchSums(fires * torch.rand(group.size, generator=draw), 6 + place)
    return sums


@pytest.mark.parametrize("name", METHODS)
def test_all_layers_at_once_are_each_layer_by_itself(name):
    together, apart, draw = Network(), Network(), torch.Generator().manual_seed(2)
    method = METHODS[name]()
    methods = {group.name: METHODS[name]() for group in apart.units}
    made_new = dict.fromkeys(methods, 0)
    for number in range(40):
        sums = seen_in(number, together.units, draw)
        together.step(method, together.units, sums)
        for group in apart.units:
            apart.step(methods[group.name], UnitGroups([group]), sums)
        for one, other in zip(together.numbers(), apart.numbers(), strict=True):
            assert torch.equal(one, other), number
        found = method.replacements()
        assert found == {key: of for each in methods.values() for key, of in each.replacements().items()}
        made_new = {key: count + sum(found.get(key, [])) for key, count in made_new.items()}
        together.update()
        apart.update()
    assert min(made_new.values()) >= 3
    states = [each.state_dict() for each in methods.values()]
    whole = method.state_dict()
    whole, states = (whole["units"], [each["units"] for each in states]) if "units" in whole else (whole, states)
    of_each = {key: of for each in states for key, of in each.items()}
    assert sorted(whole) == sorted(of_each) and all(str(whole[key]) == str(of_each[key]) for key in whole)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda method: pickle.loads(pickle.dumps(method))])
@pytest.mark.parametrize("name", METHODS)
def test_a_copy_goes_on_alike_and_by_itself(name, copied):
    first, second, draw = Network(), Network(), torch.Generator().manual_seed(2)
    method = METHODS[name]()
    other = METHODS[name]()
    for number in range(30):
        sums = seen_in(number, first.units, draw)
        if number in (7, 16):
            other = copied(other)
            untouched = copied(other)
        first.step(method, first.units, sums)
        second.step(other, second.units, sums)
        if number in (7, 16):
            assert str(untouched.state_dict()) != str(other.state_dict())
        assert str(method.state_dict()) == str(other.state_dict()), number
    assert all(torch.equal(*pair) for pair in zip(first.numbers(), second.numbers(), strict=True))
