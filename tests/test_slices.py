"""Rows and columns by number, and units that only the device marks."""

import copy

import pytest
import torch
from reset_cases import NETS, snapshot
from torch import nn

from plasticity import Consumer, UnitGroup, find_units
from plasticity.methods.recycling import initial_values
from plasticity.surgery import reinitialise
from plasticity.surgery.slices import Slices


def test_rows_and_columns_of_grouped_weights():
    weight = torch.arange(2.0 * 3 * 4 * 5).view(6, 4, 5)  # 2 groups of 3 rows and 4 columns, 5 taps
    columns = Slices.columns(torch.tensor([1, 6]), width=4, groups=2)
    assert torch.equal(columns.read(weight), torch.stack([weight[:3, 1], weight[3:, 2]]))
    changed = weight.clone()
    columns.fill(changed, -1.0)
    expected = weight.clone()
    expected[:3, 1] = expected[3:, 2] = -1
    assert torch.equal(changed, expected)
    some = Slices.rows(torch.tensor([5, 0]), torch.tensor([False, True]))
    changed = weight.clone()
    some.fill(changed, torch.zeros(2, 4, 5))
    assert torch.equal(changed[0], torch.zeros(4, 5))
    assert torch.equal(changed[1:], weight[1:])


@pytest.mark.parametrize("known", [True, False], ids=["initial", "reset_parameters"])
@pytest.mark.parametrize("name", NETS)
def test_marked_units_become_new_and_the_others_stay_bit_equal(name, known):
    net = NETS[name]
    model = net.build()
    initial = initial_values(model) if known else {}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(torch.randn(net.shape)).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1  # so that no fresh weight is by chance what was there
    group = find_units(model, torch.randn(net.shape))[net.group]
    other = copy.deepcopy(model)
    other_optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = snapshot(model)
    numbers, marked = torch.tensor([3, 0, 1]), torch.tensor([True, False, True])
    reinitialise(model, group, numbers, optimizer, torch.Generator(), initial=initial, marked=marked)
    reinitialise(other, group, [1, 3], other_optimizer, torch.Generator(), initial=initial)
    changed = 0
    for key, tensor in model.state_dict().items():  # fresh weights may be other draws, but of the same entries
        assert torch.equal(tensor != before[key], other.state_dict()[key] != before[key]), key
        changed += int((tensor != before[key]).sum())
    assert changed > 0
    for one, two in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    same = snapshot(model)
    reinitialise(model, group, numbers, optimizer, initial=initial, marked=torch.zeros(3, dtype=torch.bool))
    assert all(torch.equal(tensor, same[key]) for key, tensor in model.state_dict().items())


def test_units_that_a_reader_reads_through_fewer_columns():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(6, 2))
    columns = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    group = UnitGroup("0", size=3, activation="relu", at="1", consumers=[Consumer("2", 2, columns)])
    before = model[2].weight.clone()
    reinitialise(model, group, torch.tensor([2, 1, 0]), marked=torch.tensor([True, True, False]))
    expected = before.clone()
    expected[:, 2] = 0
    assert torch.equal(model[2].weight, expected)
    reinitialise(model, group, [0])
    expected[:, :2] = 0
    assert torch.equal(model[2].weight, expected)


@pytest.mark.parametrize("name", NETS)
def test_marked_units_are_made_new_without_a_wait(name):
    net = NETS[name]
    model = net.build().to("meta")
    initial = initial_values(model)
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    group = find_units(net.build(), torch.randn(net.shape))[net.group]
    for parameter in model.parameters():
        optimizer.state[parameter] = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
    numbers, marked = torch.arange(2, device="meta"), torch.zeros(2, dtype=torch.bool, device="meta")
    for which in None, marked:
        reinitialise(model, group, numbers, optimizer, torch.Generator(), initial=initial, marked=which)
