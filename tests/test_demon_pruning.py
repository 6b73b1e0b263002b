"""How dead units are found and pruned, against plain loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from demon_cases import BUILDS, DEAD, silence_by_bias
from torch import nn

from plasticity import find_units
from plasticity.errors import UserError
from plasticity.methods.demon_masks import BoundPrunedUnits, PrunedUnits
from plasticity.methods.demon_pruning import PRESETS, DemonRule, prune_dead_units
from plasticity.probe import Probe, balanced, output_shift
from plasticity.surgery.removal import remove_units

# --- probe -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 12, 30, 60])
def test_the_probe_takes_the_latest_of_each_class_in_turn(size):
    labels = torch.tensor(np.random.default_rng(0).choice(4, 60, p=[0.7, 0.15, 0.1, 0.05]))
    inputs = torch.arange(60.0).view(-1, 1)
    probe = Probe([(inputs[:7], "same"), (inputs[7:40], "same"), (inputs[40:], "same")])
    found = torch.cat([batch[0] for batch in balanced(probe, labels, size).batches]).flatten().int().tolist()
    queues = {c: [i for i in range(60) if labels[i] == c][::-1] for c in range(4)}
    expected, rounds = [], 0
    while len(expected) < size:
        layer = sorted(queue[rounds] for queue in queues.values() if rounds < len(queue))
        if len(expected) + len(layer) > size:
            break
        expected += layer
        rounds += 1
    assert found == sorted(found) and len(found) == size and set(expected) <= set(found)
    left = size - len(expected)
    assert all(
        labels[i].item() in {c for c, q in queues.items() if rounds < len(q)} for i in set(found) - set(expected)
    )
    assert len({labels[i].item() for i in set(found) - set(expected)}) == left


def test_without_classes_the_latest_are_taken():
    inputs = torch.arange(10.0).view(-1, 1)
    for labels in (torch.rand(10), torch.zeros(10, 2), torch.zeros(3)):
        chosen = balanced(Probe([(inputs[:6],), (inputs[6:],)]), labels, 5)
        assert torch.cat([b[0] for b in chosen.batches]).flatten().tolist() == [5, 6, 7, 8, 9]


# --- pruning ---------------------------------------------------------------------------------------------------------


def setting(name, dead=None, optimizer=torch.optim.Adam):
    build, shape = BUILDS[name]
    model, inputs = build(), torch.rand(shape)
    optimizer = optimizer(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(inputs).pow(2).sum().backward()
        optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 1  # nothing but what is silenced is dead, and no shift is 0 unless it is pruned
    silence_by_bias(model, DEAD[name] if dead is None else dead)
    return model, find_units(model, inputs), Probe([(inputs[:9],), (inputs[9:],)]), optimizer


def observed(model, probe):
    """Which units are dead, by loops over what ReLU returns, in the order of execution."""
    seen, plain = [], torch.relu

    def spy(x, *args, **kwargs):
        seen.append(plain(x))
        return seen[-1]

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "relu", spy), patch.setattr(torch, "relu", spy)
        model.eval()(torch.cat([b[0] for b in probe.batches]))
    return [[u for u in range(h.shape[1]) if not h[:, u].any()] for h in seen]


@pytest.mark.parametrize("mode", ["mask", "shrink"])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_dead_units_are_pruned_and_outputs_stay(name, mode):
    model, units, probe, optimizer = setting(name)
    dead = dict(zip((g.name for g in units), observed(model, probe), strict=True))
    before, size = probe.outputs(model), sum(p.numel() for p in model.parameters())
    pruned = PrunedUnits()
    done = prune_dead_units(model, units, probe, pruned, mode, optimizer)
    assert done.report.units == {n: d for n, d in dead.items() if d} and not done.left
    assert output_shift(before, probe.outputs(model)) <= (0 if mode == "mask" else 1e-6)
    number = sum(map(len, dead.values()))
    counts = done.report.counts
    assert counts["dead"] == counts["masked"] + counts["removed"] == number
    assert counts["removed"] == (number if mode == "shrink" else 0) and counts["left"] == counts["spared"] == 0
    assert counts["pruned_fraction"] == pytest.approx(number / sum(g.size for g in units))
    if mode == "shrink":
        assert (done.removal is not None) and len(pruned.masks) == 0 and pruned.removed == number
        assert counts["parameters"] == sum(p.numel() for p in model.parameters()) < size
        now = find_units(model, probe.example())
        assert [g.size for g in now] == [g.size - len(dead[g.name]) for g in units]
        assert not any(observed(model, probe))
    else:
        for group in units:
            for unit in dead[group.name]:
                for write in group.writes:
                    row = write.rows[unit]
                    assert not model.get_submodule(write.layer).weight[row].any()
                for reader in group.readers:
                    assert not model.get_submodule(reader.layer).weight[:, reader.columns[unit]].any()
        removed = sum(int((p == 0).sum()) for p in model.parameters())
        assert counts["parameters"] == size - removed
        for parameter in model.parameters():
            state = optimizer.state[parameter]
            if parameter.dim() > 1:
                assert not state["exp_avg"][parameter == 0].any() and not state["exp_avg_sq"][parameter == 0].any()
    again = prune_dead_units(model, find_units(model, probe.example()), probe, pruned, mode, optimizer)
    assert again.report.counts["dead"] == 0 and again.report.units == {}
    assert again.report.counts["pruned_fraction"] == counts["pruned_fraction"]


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("name", ["mlp", "conv", "residual"])
def test_masked_units_stay_at_zero(name, make):
    model, units, probe, optimizer = setting(name, optimizer=make)
    pruned = PrunedUnits()
    prune_dead_units(model, units, probe, pruned, "mask", optimizer)
    zero = {n: p == 0 for n, p in model.named_parameters()}
    bound = BoundPrunedUnits(pruned, model)
    for _ in range(3):
        optimizer.zero_grad()
        model(probe.batches[0][0]).pow(2).sum().backward()
        for parameter in model.parameters():  # as of whatever pulls at weights
            parameter.grad += 0.1
        bound.mask_gradients()
        optimizer.step()
        bound.apply()
    assert sum(int(where.sum()) for where in zero.values()) > 10
    for n, parameter in model.named_parameters():
        assert torch.equal(parameter == 0, zero[n])
        for key, value in optimizer.state[parameter].items():
            assert key == "step" or not value[zero[n]].any()
    with torch.no_grad():
        for parameter in model.parameters():  # whatever moves weights, such as noise
            parameter += 1
    bound.apply()
    assert all(torch.equal(parameter == 0, zero[n]) for n, parameter in model.named_parameters())


@pytest.mark.parametrize("mode", ["mask", "shrink"])
def test_units_that_others_depend_on_are_masked_only_where_nothing_changes(mode):
    torch.manual_seed(3)
    model, units, probe, optimizer = setting("residual", {"stem.bias": [3], "a.bias": [4], "norm.bias": [1]})
    with torch.no_grad():  # dead only because of what `a` writes: the sum with `b` would live without it
        model.b.bias[4] = 5
    before = probe.outputs(model)
    dead = observed(model, probe)
    assert 3 in dead[0] and 4 in dead[1] and 1 in dead[2]
    done = prune_dead_units(model, units, probe, PrunedUnits(), mode, optimizer)
    torch.testing.assert_close(probe.outputs(model), before, rtol=1e-5, atol=1e-6)
    assert 1 in done.report.units["c"] and done.report.units["a"]
    assert model.norm.weight[1] == model.norm.bias[1] == 0 and model.c.weight[1].all()  # LayerNorm goes on to see it
    assert not model.a.weight[4].any() and not model.b.weight[4].any() and model.b.bias[4] == 0
    assert observed(model, probe)[1] == dead[1]


class Shortcut(nn.Module):
    """Adds what units are to what is written for the next."""

    def __init__(self):
        super().__init__()
        self.stem, self.c, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.relu(self.stem(x))
        return self.out(torch.relu(self.c(h) + h))


def test_of_the_dead_units_behind_a_shortcut_those_are_masked_that_need_nothing_to_stay_so():
    model, inputs = Shortcut(), torch.rand(12, 6)
    with torch.no_grad():
        model.stem.bias.fill_(5), model.c.weight.abs_()
        model.stem.bias[2] = model.c.bias[1] = model.c.bias[2] = -50
        model.c.weight[:, 2] = 1  # reads a unit that is dead
    probe = Probe([(inputs,)])
    before = probe.outputs(model)
    assert observed(model, probe) == [[2], [1, 2]]
    done = prune_dead_units(model, find_units(model, inputs), probe, PrunedUnits())
    assert done.report.units == {"stem": [2], "c": [2]} and done.report.counts["left"] == 1 and "c" in done.left
    assert torch.equal(probe.outputs(model), before)
    assert model.c.bias[1] == -50 and not model.c.weight[2].any() and model.c.weight[:2].all()


class PreActivation(nn.Module):
    """What `a` writes is seen by a ReLU and, without it, by the output."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        z = self.a(x)
        return self.out(z + self.b(torch.relu(z)))


def test_units_whose_writers_are_seen_elsewhere_are_left_alone():
    model, inputs = PreActivation(), torch.rand(12, 6)
    silence_by_bias(model, {"a.bias": [2]})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    done = prune_dead_units(model, find_units(model, inputs), Probe([(inputs,)]), PrunedUnits())
    assert done.report.counts["dead"] >= 1 and done.report.counts["left"] == done.report.counts["dead"]
    assert "outputs would change" in done.left["a"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Rigid(nn.Module):
    """Knows by heart how many features there are, in one place."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(2, 4, 3), nn.Linear(4 * 36, 7), nn.Linear(7, 3)

    def forward(self, x):
        h = torch.relu(self.conv(x)).view(-1, 4 * 36)
        return self.out(torch.relu(self.fc(h)))


class Halves(nn.Module):
    """Splits its units into equal halves."""

    def __init__(self):
        super().__init__()
        self.both, self.left, self.right = nn.Linear(6, 8), nn.Linear(4, 3), nn.Linear(4, 3)
        with torch.no_grad():
            self.both.bias.fill_(3)  # no other unit is dead, or both halves could lose one

    def forward(self, x):
        a, b = torch.relu(self.both(x)).chunk(2, 1)
        return self.left(a) + self.right(b)


class Ramp(nn.Module):
    """Treats units by their place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        with torch.no_grad():
            self.first.bias.fill_(2), self.second.bias.fill_(20)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.out(torch.relu(self.second(h * torch.arange(1.0, h.shape[1] + 1))))


@pytest.mark.parametrize(
    ("build", "shape", "dead", "stays", "goes"),
    [
        (Rigid, (9, 2, 8, 8), {"conv.bias": [1], "fc.bias": [2, 3]}, "conv", "fc"),
        (Halves, (9, 6), {"both.bias": [1]}, "both", None),
        (Ramp, (9, 6), {"first.bias": [1], "second.bias": [2, 3]}, "first", "second"),
    ],
)
def test_what_cannot_be_removed_is_masked_and_named(build, shape, dead, stays, goes):
    model, inputs = silence_by_bias(build(), dead), torch.rand(shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    model(inputs).sum().backward()
    optimizer.step()
    silence_by_bias(model, dead)
    probe = Probe([(inputs,)])
    before = probe.outputs(model)
    pruned = PrunedUnits()
    done = prune_dead_units(model, find_units(model, inputs), probe, pruned, "shrink", optimizer)
    assert list(done.left) == [stays] and done.left[stays].startswith("masked, not removed: the ")
    torch.testing.assert_close(probe.outputs(model), before)
    assert model.get_submodule(stays).weight.shape == build().get_submodule(stays).weight.shape
    assert not model.get_submodule(stays).weight[1].any()
    if goes is not None:
        removed = len(done.removal.units[goes]) - int(done.removal.units[goes].sum())
        assert removed >= 2 and len(model.get_submodule(goes).weight) == 7 - removed
    optimizer.zero_grad()
    model(inputs).sum().backward()
    optimizer.step()
    BoundPrunedUnits(pruned, model).apply()
    again = prune_dead_units(model, find_units(model, inputs), probe, pruned, "shrink", optimizer)
    assert stays not in again.report.units


@pytest.mark.parametrize("mode", ["mask", "shrink"])
def test_a_layer_keeps_a_unit(mode):
    model, units, probe, optimizer = setting("mlp", {"0.bias": list(range(8)), "2.bias": []})
    with torch.no_grad():
        model[2].bias.fill_(1)
    pruned = PrunedUnits()
    done = prune_dead_units(model, units, probe, pruned, mode, optimizer)
    assert done.report.counts["spared"] == 1 and done.report.units["0"] == list(range(1, 8))
    again = prune_dead_units(model, find_units(model, probe.example()), probe, pruned, mode, optimizer)
    assert again.report.counts["spared"] == 1 and again.report.units == {}


def test_masks_follow_when_other_units_are_removed():
    model, inputs = silence_by_bias(Rigid(), {"conv.bias": [1]}), torch.rand(9, 2, 8, 8)
    with torch.no_grad():
        model.fc.bias.fill_(2)
    probe, pruned = Probe([(inputs,)]), PrunedUnits()
    prune_dead_units(model, find_units(model, inputs), probe, pruned, "shrink")
    columns = model.fc.weight.shape[1]
    silence_by_bias(model, {"fc.bias": [0, 5]})
    prune_dead_units(model, find_units(model, inputs), probe, pruned, "shrink")
    assert model.fc.weight.shape == (5, columns)
    kept = pruned.masks.kept(model, "fc")
    assert kept.shape == (5, columns) and torch.equal(kept, model.fc.weight != 0)
    state = pruned.state_dict()
    other = PrunedUnits()
    other.load_state_dict(state)
    BoundPrunedUnits(other, model).apply()
    assert str(other.state_dict()) == str(state)


def test_what_is_masked_follows_when_other_units_of_its_layer_are_removed():
    model, units, probe, _ = setting("mlp")
    pruned = PrunedUnits()
    pruned.mask_readers(model, units["0"], torch.tensor([1, 3]), None)
    pruned.mask_writers(model, units["0"], torch.tensor([1, 3]), None)
    pruned.follow(remove_units(model, units, {"0": [0, 3]}))
    assert pruned.units["0"].tolist() == [True, False, False, False, False, False] and pruned.removed == 2
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 1.0)
    BoundPrunedUnits(pruned, model).apply()
    assert model[0].bias.tolist() == [0, 1, 1, 1, 1, 1] == model[0].weight[:, 0].tolist()
    assert model[2].weight[0].tolist() == [0, 1, 1, 1, 1, 1]


def test_removal_makes_a_layer_smaller_and_the_outputs_are_those_of_a_network_cut_by_hand():
    model, units, probe, _ = setting("mlp", {"0.bias": [0, 1, 6], "2.bias": [3]})
    with torch.no_grad():
        model[0].bias[[2, 3, 4, 5, 7]] = model[2].bias[[0, 1, 2, 4]] = 3.0
    w = [model[i].weight.detach().double().numpy() for i in (0, 2, 4)]
    b = [model[i].bias.detach().double().numpy() for i in (0, 2, 4)]
    prune_dead_units(model, units, probe, PrunedUnits(), "shrink")
    x = torch.cat([batch[0] for batch in probe.batches]).double().numpy()
    h = np.maximum(x @ np.delete(w[0], [0, 1, 6], 0).T + np.delete(b[0], [0, 1, 6]), 0)
    h = np.maximum(h @ np.delete(np.delete(w[1], [0, 1, 6], 1), [3], 0).T + np.delete(b[1], 3), 0)
    np.testing.assert_allclose(probe.outputs(model), h @ np.delete(w[2], 3, 1).T + b[2], rtol=1e-4, atol=1e-5)


# --- the rule --------------------------------------------------------------------------------------------------------


def test_the_rule_refuses_nonsense():
    for wrong in ({"regularisation": -1}, {"noise_std": math.inf}, {"span": 0}, {"span": 2}, {"gate": "x"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            DemonRule(**wrong)
    with pytest.raises(UserError, match="regularise"):
        DemonRule(regularise="all")
    assert PRESETS["default"].noise_std == 5e-5 and PRESETS["dufortlabbe2024"].gate == "gradients"
