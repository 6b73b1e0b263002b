"""What pushes units to die: the schedule, the noise and the penalty, against plain loops."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from demon_cases import BUILDS, DEAD, WRITERS, convolutional, silence_by_bias
from torch import nn

from plasticity import find_units, watch
from plasticity.measures import dead_units
from plasticity.methods.demon_masks import BoundPrunedUnits, PrunedUnits
from plasticity.methods.demon_noise import AsymmetricNoise
from plasticity.methods.demon_pruning import add_penalty_gradient, penalised
from plasticity.methods.demon_schedule import one_cycle

CPU = torch.device("cpu")


# --- schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [7, 10, 100, 1234])
def test_the_schedule_is_that_of_pytorch(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    expected, peak = [], 0.02
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, cycle_momentum=False)
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < steps:
            scheduler.step()
    found = [one_cycle(step, steps, peak) for step in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert found[0] == pytest.approx(peak / 25) and found[-1] == pytest.approx(peak / 25e4)
    assert one_cycle(steps, steps, peak) == one_cycle(-1, steps, peak) == 0


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_schedules_begin_at_the_peak(steps):
    found = [one_cycle(step, steps, 1.0) for step in range(steps)]
    assert max(found) == pytest.approx(1) and found == sorted(found, reverse=True) and min(found) > 0
    assert one_cycle(0, 0, 1.0) == 0


# --- noise -----------------------------------------------------------------------------------------------------------


def with_gradients(name, penalty=0.1):
    build, shape = BUILDS[name]
    model, inputs = silence_by_bias(build(), DEAD[name]), torch.rand(shape)
    units = find_units(model, inputs)
    with watch(model, units) as activity:
        output = model(inputs)
    F.cross_entropy(output, torch.arange(len(output)) % 3).backward()
    for parameter in model.parameters():
        parameter.grad += penalty * parameter.detach()
    return model, units, {group: ~dead_units(stat) for group, stat in activity.statistics().items()}


@pytest.mark.parametrize("gate", ["units", "gradients", "none"])
@pytest.mark.parametrize("name", BUILDS)
def test_noise_is_gated_as_by_a_loop(name, gate):
    model, units, live = with_gradients(name)
    with torch.no_grad():  # entries that are masked: no gradient at all
        list(model.parameters())[0].grad[5, 0] = 0
    before = {key: value.detach().numpy().copy() for key, value in model.named_parameters()}
    gradients = {key: value.grad.numpy() for key, value in model.named_parameters()}
    generator = torch.Generator().manual_seed(3)
    AsymmetricNoise(model, units, gate).add(live, 0.01, {CPU: generator})
    again = torch.Generator().manual_seed(3)
    silent = 0
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=again).numpy()
        owner = WRITERS[name].get(key.rpartition(".")[0])
        expected = before[key].copy()
        for place in np.ndindex(expected.shape):
            open_ = gate == "none" or gradients[key][place] != 0
            if gate == "units" and owner is not None and not live[owner][place[0]]:
                open_ = False
                silent += 1
            if open_:
                expected[place] += np.float32(0.01) * noise[place]
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=key)
    assert silent == 0 if gate != "units" else silent > 10


def test_rows_of_dead_units_stay_though_a_penalty_pulls_at_them():
    model, units, live = with_gradients("conv")
    twin = copy.deepcopy(model)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.grad = parameter.grad.clone()
    AsymmetricNoise(model, units).add(live, 0.1, {})
    AsymmetricNoise(twin, units, "gradients").add(live, 0.1, {})
    original = with_gradients_of(DEAD["conv"])
    for name, index in DEAD["conv"].items():
        assert torch.equal(model.get_parameter(name)[index], original.get_parameter(name)[index])
        assert not torch.isclose(twin.get_parameter(name)[index], original.get_parameter(name)[index], atol=1e-6).any()
    alive = [u for u in range(6) if u != 2]
    assert not torch.isclose(model[1].bias[alive], original[1].bias[alive], atol=1e-6).any()


def with_gradients_of(numbers):
    torch.manual_seed(0)
    return silence_by_bias(convolutional(), numbers)


def test_no_noise_without_a_gradient():
    model, units, live = with_gradients("mlp")
    model[4].weight.grad = None
    before = model[4].weight.detach().clone(), model[4].bias.detach().clone()
    AsymmetricNoise(model, units).add(live, 0.1, {})
    assert torch.equal(model[4].weight, before[0]) and not torch.equal(model[4].bias, before[1])


@pytest.mark.parametrize("name", BUILDS)
def test_a_step_waits_for_nothing(name):
    build, shape = BUILDS[name]
    model = build()
    units = find_units(model, torch.rand(shape))
    model, inputs = model.to("meta"), torch.rand(shape, device="meta")  # without values: whoever asks for one raises
    entries, pruned = penalised(model, units), PrunedUnits()
    for key, parameter in model.named_parameters():
        where = torch.zeros(parameter.shape, dtype=torch.bool, device="meta")
        if parameter.dim() > 1:
            pruned.masks.remove(model, key.removesuffix(".weight"), where)
        else:
            pruned.vectors[key] = where
    bound, noise = BoundPrunedUnits(pruned, model), AsymmetricNoise(model, units)
    with pytest.raises(RuntimeError, match="meta"):
        float(model(inputs).detach().sum())
    for _ in range(2):
        with watch(model, units) as activity:
            model(inputs).sum().backward()
        add_penalty_gradient(entries, 0.1)
        bound.mask_gradients()
        noise.add({key: ~dead_units(stat) for key, stat in activity.statistics().items()}, 0.1, {})
        bound.apply()


# --- penalty ---------------------------------------------------------------------------------------------------------

PENALISED = {
    ("mlp", "scales"): ({}, {"0.weight": 8, "2.weight": 5}),
    ("conv", "scales"): ({"1.weight": 6}, {"3.weight": 4, "6.weight": 5}),
    ("conv", "weights"): ({}, {"0.weight": 6, "3.weight": 4, "6.weight": 5}),
    ("residual", "scales"): ({"norm.weight": 6}, {"stem.weight": 6, "a.weight": 6, "b.weight": 6}),
}


@pytest.mark.parametrize(("name", "regularise"), PENALISED)
def test_the_penalty_is_the_gradient_of_its_formula(name, regularise):
    build, shape = BUILDS[name]
    model = build()
    units = find_units(model, torch.rand(shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    lasso, square = PENALISED[name, regularise]
    formula = sum(model.get_parameter(n).abs().sum() for n in lasso)
    formula = formula + sum(0.5 * model.get_parameter(n).pow(2).sum() for n in square)
    (0.3 * formula).backward()
    expected = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    add_penalty_gradient(penalised(model, units, regularise), 0.3)
    for n, parameter in model.named_parameters():
        own = torch.zeros_like(parameter) if expected[n] is None else expected[n]
        torch.testing.assert_close(parameter.grad, 1 + own)
    for parameter in model.parameters():
        parameter.grad = None
    add_penalty_gradient(penalised(model, units, regularise), 0.3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_rows_that_write_units_are_penalised():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = self.first(x)
            return self.out(torch.cat([torch.relu(h[:, :4]), h[:, 4:]], 1))

    model = Half()
    (entry,) = penalised(model, find_units(model, torch.rand(3, 4)))
    model.first.weight.grad = torch.zeros(6, 4)
    add_penalty_gradient([entry], 2.0)
    expected = 2 * model.first.weight.detach()
    expected[4:] = 0
    torch.testing.assert_close(model.first.weight.grad, expected)
