"""Synaptic stripping against loops in numpy, and on toy problems where the rules differ."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from stripping_reference import PROBLEMS, dead_units, sick
from stripping_reference import strip as strip_by_hand
from torch import nn

from plasticity import find_units
from plasticity.errors import UserError
from plasticity.methods import synaptic_stripping
from plasticity.methods.synaptic_stripping import PRESETS, StrippingRule, strip_dead_units
from plasticity.probe import Probe
from plasticity.surgery.masks import Masks

DEFAULT, AUTHORS = PRESETS["default"], PRESETS["whitaker2023"]
RULES = {
    "default": DEFAULT,
    "authors": AUTHORS,
    "authors, ten rounds": replace(AUTHORS, rounds=10),
    "a third of the row at most": replace(DEFAULT, max_row_sparsity=0.34, rounds=40),
    "larger fraction": replace(DEFAULT, fraction=0.3, rounds=3),
    "no fallback": replace(DEFAULT, fallback="none", rounds=60),
    "guarded weights": replace(DEFAULT, score="signed_weight"),
    "guarded contributions": replace(DEFAULT, score="signed_contribution"),
    "unguarded contributions": replace(DEFAULT, guard=False, fraction=0.5),
    "nothing may be removed": replace(DEFAULT, max_row_sparsity=0.0),
}


def strip(model, x, rule, masks=None, **others):
    masks = Masks() if masks is None else masks
    units = find_units(model, x[:2])
    return strip_dead_units(model, units, Probe([(part,) for part in x.split(16)]), masks, rule, **others), masks


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_round_as_by_hand(name, rule):
    problem, found = PROBLEMS[name], set()
    for seed in range(3):
        model, x = sick(problem, seed)
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        before = model(x).detach()
        removed, treated, counts = strip_by_hand(problem, state, x, RULES[rule])
        report, masks = strip(model, x, RULES[rule])
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[key]), key
        for layer in removed:
            assert torch.equal(masks.kept(model, layer), ~removed[layer])
        assert {(group, unit) for group, units in report.units.items() for unit in units} == treated
        removed_fraction = report.counts.pop("removed_fraction")
        assert report.counts == counts
        masked = [gone for gone in removed.values() if gone.any()]
        whole = sum(gone.numel() for gone in masked)
        assert removed_fraction == pytest.approx(sum(int(gone.sum()) for gone in masked) / max(whole, 1))
        moved = (model(x).detach() - before).norm(dim=1).mean() / before.norm(dim=1).mean()
        assert report.output_shift == pytest.approx(float(moved), rel=1e-5)
        assert (report.method, report.samples) == ("synaptic-stripping", len(x))
        found |= {key for key, value in counts.items() if value}
    assert found >= {"dead", "rounds"}  # the problem is one


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_authors_rule_is_their_formula_for_every_length_of_a_row(dtype):
    for width in range(1, 260, 3):
        model = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)
        with torch.no_grad():
            model[0].bias.fill_(-100)
            model[0].weight[0, ::2] = 0
            model[0].weight[1] = 0  # nothing left to strip
        before = model[0].weight.detach().clone()
        report, masks = strip(model, torch.rand(8, width, dtype=dtype), AUTHORS)
        for unit in range(4):
            weights = before[unit]
            left = weights[weights != 0]
            expected = weights.clone()
            if len(left):
                expected[weights < torch.quantile(left, 0.05)] = 0
            assert torch.equal(model[0].weight[unit], expected)
            assert torch.equal(~masks.kept(model, "0")[unit], (expected == 0) & (weights != 0))
        assert (model[0].bias == -100).all()
        assert report.counts["rounds"] == (1 if width > 1 else 0)


def test_the_authors_rule_strips_every_epoch_what_is_left():
    model, x = sick(PROBLEMS["mlp"], 0)
    twin, masks, other = copy.deepcopy(model), Masks(), Masks()
    for _ in range(5):
        strip(model, x, AUTHORS, masks)
    strip(twin, x, replace(AUTHORS, rounds=5), other)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert masks.removed() == other.removed() > 0


def test_rows_are_ranked_in_parts_where_there_are_many(monkeypatch):
    results = []
    for at_once in 2**22, 40:
        monkeypatch.setattr(synaptic_stripping, "_AT_ONCE", at_once)
        model, x = sick(PROBLEMS["conv, grouped and normalised"], 1)
        report, _ = strip(model, x, replace(DEFAULT, fallback="none"))
        results.append((report, *model.state_dict().values()))
    assert results[0][0] == results[1][0]
    assert results[0][0].counts["stripped"] > 0
    assert all(torch.equal(a, b) for a, b in zip(results[0][1:], results[1][1:], strict=True))


# What the rules can do: the toy checks of a row of 256 connections


def toy(weight, bias, x):
    """Twenty units over given inputs."""
    model = nn.Sequential(nn.Linear(256, 20), nn.ReLU(), nn.Linear(20, 2))
    with torch.no_grad():
        model[0].weight.copy_(weight), model[0].bias.fill_(bias)
    activations = model[:2](x).detach()
    assert len(dead_units(activations)) == 20
    return model


def he(seed, shift=-0.1):
    return torch.randn(20, 256, generator=torch.Generator().manual_seed(100 + seed)) * (2 / 256) ** 0.5 + shift


def kept_share(masks, model):
    return masks.kept(model, "0").double().mean(1)


def test_with_non_negative_inputs_both_rules_revive_all_with_about_half_of_the_row():
    x = torch.randn(500, 256).relu()
    for rule in replace(AUTHORS, rounds=100), replace(DEFAULT, rounds=100):
        model = toy(he(0), 0.0, x)
        report, masks = strip(model, x, rule)
        assert report.counts["revived"] == 20
        assert report.counts["still_dead"] == 0
        assert report.counts["rounds"] <= 30
        assert 0.3 < kept_share(masks, model).mean() < 0.7


def test_with_signed_inputs_only_the_default_revives():
    x = torch.randn(500, 256) - torch.randn(256).abs()  # as after a LayerNorm with a shift of its own for each feature
    revived = {}
    for name, rule in {"authors": AUTHORS, "default": DEFAULT}.items():
        model = toy(he(1, 0.1), 0.0, x)
        report, _ = strip(model, x, replace(rule, rounds=30))
        revived[name] = report.counts["revived"]
        assert len(dead_units(model[:2](x).detach())) == 20 - report.counts["revived"]
    assert revived["authors"] <= 2
    assert revived["default"] == 20


@pytest.mark.parametrize("bias", [-0.3, -0.6, -1.0, -2.0, -3.0, -8.0])
def test_a_stubborn_bias_is_beyond_the_authors_rule_but_not_the_default(bias):
    x = torch.randn(500, 256).relu()
    model = toy(he(2), bias, x)
    report, masks = strip(model, x, replace(DEFAULT, rounds=100))
    assert report.counts["revived"] == 20
    assert kept_share(masks, model).min() >= 0.1
    assert kept_share(masks, model).mean() >= 0.11
    assert (model[0].bias <= 0).all()
    if bias <= -8:
        assert report.counts["fallback"] == 20
        assert (model[0].bias == 0).all()
        model = toy(he(2), bias, x)
        report, masks = strip(model, x, replace(AUTHORS, rounds=100))
        assert report.counts["revived"] == 0
        assert kept_share(masks, model).max() < 0.1  # the row is destroyed


# Where nothing can or need be done


def test_without_dead_units_nothing_changes_at_all():
    model, x = sick(PROBLEMS["mlp"], 0)
    with torch.no_grad():
        for layer in model[0], model[2]:
            layer.bias.fill_(5), layer.weight.abs_()
    optimizer = torch.optim.Adam(model.parameters())
    model(x).mean().backward()
    optimizer.step()
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    random, generator = torch.get_rng_state(), torch.Generator().manual_seed(1)
    for rule in RULES.values():
        report, masks = strip(model, x, replace(rule, rounds=5), optimizer=optimizer, generator=generator)
        assert len(masks) == 0
        assert report.units == {}
        assert not any(report.counts.values())
        assert report.output_shift == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert str(optimizer.state_dict()) == str(state)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(1).get_state())


@pytest.mark.parametrize("rule", [replace(DEFAULT, fraction=0), replace(DEFAULT, rounds=0), replace(AUTHORS, rounds=0)])
def test_a_rule_that_does_nothing_only_counts(rule):
    model, x = sick(PROBLEMS["mlp"], 0)
    before = copy.deepcopy(model.state_dict())
    report, masks = strip(model, x, rule)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len(masks) == 0
    assert report.counts["dead"] == report.counts["still_dead"] > 0
    assert sum(report.counts.values()) == 2 * report.counts["dead"]


@pytest.mark.parametrize("fallback", ["zero_bias", "none"])
def test_units_without_any_input_stay_dead_and_it_ends(fallback):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight.fill_(-1), model[0].bias.zero_()
        model[2].bias.fill_(-1)
    x = torch.zeros(50, 6)
    report, masks = strip(model, x, replace(DEFAULT, fallback=fallback, rounds=1000))
    assert report.counts["dead"] == report.counts["still_dead"] == 13
    assert report.counts["rounds"] <= 1
    assert len(masks) == 0  # what brings nothing is not removed
    assert (model[2].bias == (0 if fallback == "zero_bias" else -1)).all()


def test_groups_that_the_probe_does_not_reach_are_left_alone():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.read = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x, second=True):
            h = torch.relu(self.a(x))
            return self.read(h + torch.relu(self.b(x)) if second else h)

    model, x = Unused(), torch.rand(20, 4)
    with torch.no_grad():
        model.b.bias.fill_(-100), model.a.bias.fill_(100)
    units = find_units(model, x)
    report = strip_dead_units(model, units, Probe([(x, False)]), Masks(), DEFAULT)
    assert not any(report.counts.values())


# Fallbacks, masks and the optimizer


def test_reinitialisation_helps_private_units_that_stripping_cannot():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].bias[:4], model[2].bias[:] = -100, 2
    x = torch.rand(100, 6)
    rule = replace(DEFAULT, fallback="reinitialise", max_row_sparsity=0.0, rounds=5)
    twin, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    report, _ = strip(model, x, rule, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert report.counts["fallback"] >= report.counts["revived"] == 4
    assert len(dead_units(model[:2](x).detach())) == 0
    assert (model[2].weight[:, :4] == 0).all()
    assert torch.equal(model[0].weight[4:], before["0.weight"][4:])
    again, _ = strip(twin, x, rule, generator=torch.Generator().manual_seed(3))
    assert again == report
    assert torch.equal(twin[0].weight, model[0].weight)


class Residual(nn.Module):
    """Its hidden units are added to others: their incoming weights may change, their outgoing ones not."""

    def __init__(self):
        super().__init__()
        self.write, self.skip, self.read = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.read(torch.relu(self.write(x)) + torch.relu(self.skip(x)))


def test_units_that_are_not_private_are_stripped_but_not_reinitialised():
    model, x = Residual(), torch.rand(100, 6)
    with torch.no_grad():
        model.write.weight[:4], model.write.weight[:4, 2], model.write.bias[:4] = -1, 0.1, 0
        model.write.weight[4], model.write.bias[4] = 0.1, -50
        model.write.bias[5:], model.skip.bias[:] = 2, 2
    twin = copy.deepcopy(model)
    report, masks = strip(model, x, replace(DEFAULT, fallback="reinitialise"))
    assert report.counts["revived"] == 4
    assert report.units == {"write": [0, 1, 2, 3]}
    assert list(masks) == ["write"]
    assert torch.equal(model.read.weight, twin.read.weight)
    assert torch.equal(model.write.weight[4], twin.write.weight[4])


def test_connections_removed_before_stay_removed_and_are_not_counted_again():
    model, x = sick(PROBLEMS["mlp"], 2)
    masks, gone = Masks(), torch.rand(16, 12) < 0.3
    masks.remove(model, "0", gone)
    report, _ = strip(model, x, DEFAULT, masks)
    assert (model[0].weight[gone] == 0).all()
    removed = sum(int((model[number].weight == 0).sum()) for number in (0, 2))
    assert removed == report.counts["connections"] + int(gone.sum())


def test_no_row_ever_loses_more_than_its_share():
    model, x = sick(PROBLEMS["mlp"], 2)
    with torch.no_grad():
        model[0].weight.copy_(-torch.rand(16, 12)), model[0].bias.fill_(-1)
    masks, rule = Masks(), replace(DEFAULT, max_row_sparsity=0.5, fallback="none")
    for _ in range(4):
        report, _ = strip(model, x, rule, masks)
        assert ((model[0].weight == 0).sum(1) <= 6).all()
    assert ((model[0].weight == 0).sum(1) == 6).any()
    assert report.counts["rounds"] == 0  # and it sees that nothing is left to do


def test_equal_connections_lie_not_below_their_quantile_and_the_guard_takes_one_at_a_time():
    model = nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.fill_(-0.5), model[0].bias.fill_(-1)
    x, masks = torch.rand(20, 6), Masks()
    strip(model, x, AUTHORS, masks)
    assert masks.removed() == 0
    for gone in range(1, 7):
        strip(model, x, replace(DEFAULT, fallback="none", rounds=1, max_row_sparsity=1.0), masks)
        assert masks.removed() == gone


@pytest.mark.parametrize("rule", [DEFAULT, replace(AUTHORS, rounds=3)])
def test_the_optimizer_forgets_what_is_removed_but_not_by_the_authors_rule(rule):
    model, x = sick(PROBLEMS["conv, grouped and normalised"], 0)
    optimizer = torch.optim.AdamW(model.parameters())
    (model(x).square().sum() + sum(p.square().sum() for p in model.parameters())).backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    biases = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() == 1}
    _, masks = strip(model, x, rule, optimizer=optimizer)
    assert masks.removed()
    for number, (name, parameter) in enumerate(model.named_parameters()):
        state, gone = optimizer.state[parameter], torch.zeros_like(parameter, dtype=torch.bool)
        if rule is DEFAULT and parameter.dim() > 1:
            gone = ~masks.kept(model, name.removesuffix(".weight"))
        elif rule is DEFAULT:
            gone = parameter != biases[name]
        assert torch.equal(state["step"], before[number]["step"])
        assert torch.equal(state["exp_avg"], before[number]["exp_avg"].masked_fill(gone, 0)), name
        assert torch.equal(state["exp_avg_sq"][~gone], before[number]["exp_avg_sq"][~gone])
        if parameter.dim() > 1:
            assert (state["exp_avg_sq"][gone] == 0).all()


def test_half_precision_weights():
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2)).to(torch.bfloat16)
    with torch.no_grad():
        model[0].weight -= 0.1
    x = torch.rand(100, 64, dtype=torch.bfloat16)
    for rule in AUTHORS, DEFAULT:
        twin = copy.deepcopy(model)
        report, masks = strip(twin, x, rule)
        assert report.counts["connections"] == masks.removed() > 0
        assert np.isfinite(report.output_shift)


# Bad arguments


@pytest.mark.parametrize(
    "arguments",
    [
        {"fraction": 1.5},
        {"fraction": -0.1},
        {"fraction": float("nan")},
        {"fraction": "half"},
        {"max_row_sparsity": 2},
        {"rounds": -1},
        {"rounds": 1.5},
        {"score": "magnitude"},
        {"fallback": "pray"},
    ],
    ids=str,
)
def test_bad_rules_are_refused_in_one_line(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))) as error:
        StrippingRule(**arguments)
    assert "\n" not in str(error.value)


def test_an_empty_probe_is_refused():
    model, x = sick(PROBLEMS["mlp"], 0)
    with pytest.raises(UserError, match="no training mini-batch"):
        strip_dead_units(model, find_units(model, x), Probe([]), Masks())
