"""Optimizer state of reset weights: what it becomes, that all other entries stay, and what the next steps are."""

import copy

import numpy as np
import pytest
import torch
from reset_cases import NETS, UNITS, conv_flatten, incoming_by_hand, outgoing_by_hand
from torch import nn

from plasticity import find_units
from plasticity.errors import UserError
from plasticity.surgery import OUTGOING_SHARE, reinitialise, silence
from plasticity.surgery.optimizer_state import clean_state
from plasticity.surgery.slices import Slices

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "nadam": lambda p: torch.optim.NAdam(p),
    "adamax": lambda p: torch.optim.Adamax(p),
}
SECOND = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta"}


def trained(name):
    torch.manual_seed(3)
    model = conv_flatten()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(8, 2, 6, 6)).square().mean().backward()
        optimizer.step()
    return model, optimizer, find_units(model, torch.randn(2, 2, 6, 6))["0"]


def expected_entry(key, before, where, moments, share):
    """One state tensor after a reset, entry by entry."""
    if moments == "keep":
        return before
    kept = [v for v, hit in zip(before.flatten().tolist(), where.flatten().tolist(), strict=True) if not hit and v > 0]
    value = 0.0
    if key in SECOND and moments != "zero":
        value = sum(kept) / max(len(kept), 1) * (share if moments == "young" else 1)
    return torch.where(where, torch.tensor(value, dtype=before.dtype), before)


@pytest.mark.parametrize("moments", ["young", "mean", "zero", "keep"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_is_cleaned_at_changed_weights_and_bit_equal_elsewhere(name, moments):
    model, optimizer, group = trained(name)
    net = NETS["flatten"]
    before = copy.deepcopy(optimizer.state_dict()["state"])
    touched = {**incoming_by_hand(net, model), **outgoing_by_hand(net, model)}
    reinitialise(model, group, UNITS, optimizer, moments=moments)
    after = optimizer.state_dict()["state"]
    assert after.keys() == before.keys()
    seen = set()
    for number, (parameter, _) in enumerate(model.named_parameters()):
        assert after[number].keys() == before[number].keys()
        for key, old in before[number].items():
            new = after[number][key]
            if not isinstance(old, torch.Tensor) or old.dim() == 0 or parameter not in touched:
                assert new is None or bool(torch.as_tensor(new == old).all()), (parameter, key)
                continue
            share = OUTGOING_SHARE if parameter.startswith("4.") else 0.01
            expected = expected_entry(key, old, touched[parameter], moments, share)
            torch.testing.assert_close(new, expected, rtol=1e-6, atol=0)
            assert torch.equal(new[~touched[parameter]], old[~touched[parameter]])
            seen.add(key)
    assert seen
    model(torch.randn(8, 2, 6, 6)).square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_step_sizes_are_no_moments():
    model, _, group = trained("sgd")
    for optimizer in torch.optim.Rprop(model.parameters(), lr=0.01), torch.optim.ASGD(model.parameters()):
        model(torch.randn(8, 2, 6, 6)).square().mean().backward()
        optimizer.step()
        key = "step_size" if isinstance(optimizer, torch.optim.Rprop) else "ax"
        before = optimizer.state[model[0].weight][key].clone()
        reinitialise(model, group, UNITS, optimizer)
        assert torch.equal(optimizer.state[model[0].weight][key], before)


def test_removed_weights_do_not_count_in_the_mean():
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    optimizer.state[weight]["exp_avg_sq"].copy_(torch.tensor([[4.0, 0.0, 8.0], [1.0, 1.0, 1.0]]))
    clean_state(optimizer, weight, torch.tensor([[False] * 3, [True] * 3]), "mean")
    assert optimizer.state[weight]["exp_avg_sq"].tolist() == [[4, 0, 8], [6, 6, 6]]


@pytest.mark.parametrize(
    ("shape", "step"), [((256, 511), 1), ((512, 512), 4), ((1000, 1000), 15), ((130, 4000), 2), ((10, 50000), 1)]
)
def test_the_mean_of_a_large_parameter_is_that_of_rows_all_over_it(shape, step):
    """Rows differ by a factor of ten, and some are 0; one row is made new."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    optimizer = torch.optim.Adam([weight])
    second = torch.rand(shape) * torch.logspace(0, 1, shape[0])[:, None]
    second[5:9] = 0
    optimizer.state[weight] = {"exp_avg_sq": second.clone()}
    clean_state(optimizer, weight, Slices.rows(torch.tensor([3])), "mean")
    found = optimizer.state[weight]["exp_avg_sq"]
    others = [row for number, row in enumerate(second) if number % step == 0 and number not in (3, 5, 6, 7, 8)]
    assert len(others) * shape[1] >= min(2**16, second.numel() - 5 * shape[1]) - 5 * shape[1]
    expected = sum(row.double().sum() for row in others) / sum(len(row) for row in others)
    torch.testing.assert_close(found[3], torch.full_like(found[3], float(expected)), rtol=1e-4, atol=0)
    kept = torch.arange(shape[0]) != 3
    assert torch.equal(found[kept], second[kept])
    mean = second[kept][second[kept] > 0].double().mean()
    assert float(expected) == pytest.approx(float(mean), rel=0.05)


def test_absent_empty_and_partial_state_is_normal():
    net = NETS["flatten"]
    model = net.build()
    group = find_units(model, torch.randn(net.shape))["0"]
    for optimizer in (
        torch.optim.Adam(model.parameters()),  # no step yet
        torch.optim.Adam(nn.Linear(2, 2).parameters()),  # of another model
        torch.optim.SGD(model.parameters(), lr=0.1),  # no state at all
    ):
        reinitialise(model, group, UNITS, optimizer)
        silence(model, group, UNITS, optimizer)
        assert not [entry for entry in optimizer.state.values() if entry]
    partial = torch.optim.Adam([model[4].weight])
    model(torch.randn(net.shape)).square().mean().backward()
    partial.step()
    reinitialise(model, group, UNITS, partial)
    assert list(partial.state) == [model[4].weight]
    assert (partial.state[model[4].weight]["exp_avg"][:, 9:18] == 0).all()
    partial.state[model[4].weight] = {"step": torch.tensor(1.0)}
    reinitialise(model, group, UNITS, partial)
    assert partial.state[model[4].weight] == {"step": torch.tensor(1.0)}


def test_unknown_moments_are_refused():
    model, optimizer, group = trained("adam")
    with pytest.raises(UserError, match="moments 'old'.* young, mean, zero, keep"):
        reinitialise(model, group, UNITS, optimizer, moments="old")


class AgedAdam:
    """Adam with an age for every entry, which corrects a new entry as it would a new tensor."""

    def __init__(self, adam):
        self.entries = []
        for group in adam.param_groups:
            for parameter in group["params"]:
                state = adam.state[parameter]
                age = torch.full_like(parameter, float(state["step"]))
                self.entries.append((parameter, state["exp_avg"].clone(), state["exp_avg_sq"].clone(), age))
        self.lr = adam.param_groups[0]["lr"]

    @torch.no_grad()
    def step(self):
        for parameter, first, second, age in self.entries:
            age += 1
            first.mul_(0.9).add_(parameter.grad, alpha=0.1)
            second.mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
            corrected = (second / (1 - 0.999**age)).sqrt() + 1e-8
            parameter -= self.lr * first / (1 - 0.9**age) / corrected


class Regression:
    """A small network trained long enough for the step count to correct nothing any more."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
        self.teacher = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        for _ in range(1500):
            self.backward()
            self.optimizer.step()

    def backward(self):
        x = torch.randn(32, 10)
        self.model.zero_grad()
        (self.model(x) - 5 * self.teacher(x).detach()).square().mean().backward()

    def steps_after_reset(self, moments):
        """Reset a quarter of the units; returns mean |update| / lr of incoming and outgoing weights by step."""
        group, reset = find_units(self.model, torch.randn(2, 10))["0"], list(range(8))
        stepper = self.optimizer
        reinitialise(self.model, group, reset, self.optimizer, moments="zero" if moments == "aged" else moments)
        if moments == "aged":
            stepper = AgedAdam(self.optimizer)
            ages = [age for _, _, _, age in stepper.entries]
            ages[0][reset] = ages[1][reset] = ages[2][:, reset] = 0
        found, (write, read) = [], (self.model[0].weight, self.model[2].weight)
        for _ in range(100):
            self.backward()
            before = write.detach().clone(), read.detach().clone()
            stepper.step()
            rows, columns = (write - before[0])[reset], (read - before[1])[:, reset]
            found.append((rows.abs().mean().item() / 1e-3, columns.abs().mean().item() / 1e-3))
        return np.array(found)


def test_steps_after_a_reset_are_about_those_of_an_adam_that_knows_the_age_of_every_entry():
    problem = Regression()
    aged, young, zero, mean = (
        copy.deepcopy(problem).steps_after_reset(moments) for moments in ("aged", "young", "zero", "mean")
    )
    for column in 0, 1:
        assert young[:, column].max() < 2 * aged[:, column].max()
        assert 0.5 < young[20:, column].mean() / aged[20:, column].mean() < 2
        assert zero[:, column].max() > 3 * aged[:, column].max()  # oversized
    assert mean[:, 0].mean() < 0.1 * aged[:, 0].mean()  # starved
