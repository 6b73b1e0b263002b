"""The three algorithms called shrink and perturb, against numpy."""

import numpy as np
import pytest
import torch
from step_driver import Steps
from step_driver import mlp as step_mlp
from torch import nn
from weight_methods import STATEFUL, conv, copy_of, mlp, moved, run, trained

from plasticity.errors import UserError
from plasticity.methods.parameters import LAYER_KINDS, InitialValues
from plasticity.methods.shrink_perturb import (
    PRESETS,
    ShrinkPerturbRule,
    noise_scales,
    shrink_and_perturb,
    shrink_and_perturb_step,
)
from plasticity.methods.whole_weights import change_weights, draw_like
from plasticity.plugins import ShrinkPerturbPlugin


def beginning(model, **kinds):
    """Initial values of other numbers than the network's own."""
    initial = InitialValues(**kinds)
    entries = initial.update(model)
    for name in initial:
        initial._values[name] = torch.randn_like(initial[name])
    return entries, initial


@pytest.mark.parametrize("optimizer", STATEFUL)
@pytest.mark.parametrize("build", [mlp, conv])
@pytest.mark.parametrize("rule", [PRESETS["ash2020"], PRESETS["fire2026"], ShrinkPerturbRule(shrink=0.7, perturb=0)])
def test_against_numpy(rule, build, optimizer):
    model, optimizer, probe = trained(build, optimizer)
    entries, initial = beginning(model)
    before = copy_of(model)
    outputs = probe.outputs(model)
    picks, expected = torch.Generator().manual_seed(4), {}
    for name in initial:
        old, begin = before[name].numpy(), initial[name].numpy()
        if rule.variant == "interpolate":
            expected[name] = 0.2 * old + 0.8 * begin
        elif rule.perturb:
            chosen = torch.randint(begin.size, begin.shape, generator=picks).numpy()
            expected[name] = 0.4 * old + 0.1 * begin.flatten()[chosen]
        else:
            expected[name] = 0.7 * old
    report = change_weights(
        "shrink-perturb",
        model,
        probe,
        lambda: shrink_and_perturb(model, entries, initial, rule, torch.Generator().manual_seed(4)),
        optimizer=optimizer,
    )
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-5, atol=1e-7)
    assert not optimizer.state
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            fresh = rule.variant == "experience"
            assert module.running_mean.eq(0).all() == module.running_var.eq(1).all() == fresh
    new, old = (np.concatenate([v[n].numpy().ravel() for n in initial]) for v in (copy_of(model), before))
    counts = report.counts
    assert counts["parameters"] == len(list(model.parameters())) and counts["entries"] == len(new)
    assert counts["relative_change"] == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5)
    shift = (probe.outputs(model) - outputs).norm(dim=1).mean() / outputs.norm(dim=1).mean()
    assert report.output_shift == pytest.approx(float(shift), rel=1e-5) and report.samples == 12


@pytest.mark.parametrize("kept", ["clear", "keep"])
@pytest.mark.parametrize("optimizer", STATEFUL)
def test_the_optimizer_begins_anew_or_keeps_its_state(optimizer, kept):
    model, optimizer, probe = trained(mlp, optimizer)
    state = {p: dict(entry) for p, entry in optimizer.state.items()}
    assert state
    change_weights("x", model, probe, lambda: [], optimizer=optimizer, optimizer_state=kept)
    assert {p: dict(entry) for p, entry in optimizer.state.items()} == ({} if kept == "clear" else state)
    optimizer.step()


@pytest.mark.parametrize("scale", ["initial", "normal"])
@pytest.mark.parametrize("build", [mlp, conv])
def test_a_step_against_numpy(build, scale):
    model, _, _ = trained(build)
    rule = ShrinkPerturbRule("step", decay=0.1, noise=0.05, scale=scale)
    entries, initial = beginning(model, kinds=LAYER_KINDS)
    before = copy_of(model)
    scales = noise_scales(entries, initial, rule)
    parameters = [entry.parameter for entry in entries]
    shrink_and_perturb_step(parameters, scales, rule, torch.Generator().manual_seed(2))
    drawn = torch.empty(sum(p.numel() for p in parameters)).normal_(generator=torch.Generator().manual_seed(2)).numpy()
    for entry in entries:
        size = entry.parameter.numel()
        noise, drawn = drawn[:size].reshape(entry.parameter.shape), drawn[size:]
        spread = initial[entry.name].numpy().std() if scale == "initial" else 1
        expected = 0.9 * before[entry.name].numpy() + 0.05 * spread * noise
        np.testing.assert_allclose(entry.parameter.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    normalisers = {n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)}
    assert moved(model, before) == {n for n, _ in model.named_parameters() if n.partition(".")[0] not in normalisers}


def test_noise_and_decay_hold_weights_at_their_initial_size():
    """decay 1e-2 and noise 0.1 balance at a standard deviation of 0.1 / sqrt(2e-2) = 0.7 of the initial one."""
    weight = nn.Parameter(torch.zeros(4000))
    rule = ShrinkPerturbRule("step", decay=1e-2, noise=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        shrink_and_perturb_step([weight], [torch.tensor(0.1 * 2.0)], rule, generator)
    assert float(weight.detach().std()) == pytest.approx(2.0 * 0.1 / 0.02**0.5, rel=0.05)


@pytest.mark.parametrize("every", [1, 2, 7])
def test_many_steps_at_once_are_what_they_come_to_one_by_one(every):
    """Mean and variance of a weight, followed through single steps; one step at once has the same two."""
    single, many = (ShrinkPerturbRule("step", decay=0.1, noise=0.05, step_every=steps) for steps in (1, every))
    mean, variance = 3.0, 0.0
    for _ in range(every):
        mean, variance = (1 - 0.1) * mean, (1 - 0.1) ** 2 * variance + 0.05**2
    assert (single.kept, single.spread) == (0.9, 1.0)
    assert many.kept * 3.0 == pytest.approx(mean, rel=1e-12)
    model, _, _ = trained(mlp)
    entries, initial = beginning(model, kinds=LAYER_KINDS)
    scales = noise_scales(entries, initial, ShrinkPerturbRule("step", noise=0.05, decay=0.1, step_every=every))
    spread = initial[entries[0].name].std(correction=0)
    assert float((scales[0] / spread) ** 2) == pytest.approx(variance, rel=1e-5)
    weight = nn.Parameter(torch.full((4000,), 3.0))
    shrink_and_perturb_step([weight], [torch.tensor(0.05 * many.spread)], many, torch.Generator().manual_seed(0))
    assert float(weight.detach().mean()) == pytest.approx(mean, abs=0.01)
    assert float(weight.detach().var()) == pytest.approx(variance, rel=0.1)


def test_with_step_every_nothing_happens_in_between():
    """Without noise and learning rate weights of layers shrink by 0.9^3 after each third update."""
    driver = Steps("shrink-perturb-step:decay=0.1:noise=0:step_every=3", step_mlp(2, 6), (5,))
    driver.strategy.optimizer = torch.optim.SGD(driver.strategy.model.parameters(), lr=0.0)
    before = copy_of(driver.strategy.model)
    for number in range(1, 9):
        driver.step()
        for name, value in copy_of(driver.strategy.model).items():
            torch.testing.assert_close(value, before[name] * 0.9 ** (number // 3 * 3), rtol=1e-5, atol=0)
    with pytest.raises(UserError, match="step_every"):
        ShrinkPerturbPlugin("step", step_every=0)


def test_draws_have_the_distribution_of_the_entries():
    values = torch.tensor([[-1.0, 0.0], [2.0, 2.0]]).repeat(50, 50)
    drawn = draw_like(values, torch.Generator().manual_seed(0))
    assert drawn.shape == values.shape and set(drawn.unique().tolist()) == {-1.0, 0.0, 2.0}
    assert float((drawn == 2).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert draw_like(torch.empty(0, 3), torch.Generator()).shape == (0, 3)


def test_variants_have_names_and_presets_of_their_own():
    assert ShrinkPerturbPlugin().rule == PRESETS["ash2020"]
    assert (ShrinkPerturbPlugin().rule.shrink, ShrinkPerturbPlugin().rule.perturb) == (0.4, 0.1)
    assert ShrinkPerturbPlugin("step").rule == PRESETS["kumar2023"]
    assert ShrinkPerturbPlugin("interpolate").rule.strength == 0.8
    names = [ShrinkPerturbPlugin(variant).method for variant in ("experience", "step", "interpolate")]
    assert names == ["shrink-perturb", "shrink-perturb-step", "shrink-perturb-interpolate"]
    assert ShrinkPerturbPlugin("interpolate", strength=0.3).rule == ShrinkPerturbRule("interpolate", strength=0.3)


def test_interpolation_all_the_way_starts_each_experience_from_the_same_weights():
    class Looks(ShrinkPerturbPlugin):
        seen = []

        def before_training_exp(self, strategy, **kwargs):
            super().before_training_exp(strategy, **kwargs)
            Looks.seen.append(strategy.model.features[0].weight.detach().clone())

    run([Looks("interpolate", strength=1)])
    assert len(Looks.seen) == 3
    assert torch.equal(Looks.seen[0], Looks.seen[1]) and torch.equal(Looks.seen[0], Looks.seen[2])
