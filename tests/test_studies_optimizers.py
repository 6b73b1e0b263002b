"""Optimizer, momentum and weight decay as settings of a run: they reach PyTorch, and old results stay what they are."""

import pytest
import torch
from torch import nn

from benchmarks.settings import resolve
from benchmarks.training import _make, train
from plasticity.errors import UserError


def optimizer_of(strategy="naive", **settings):
    found = resolve("split-digits", strategy, 0, **settings)
    return _make(found, lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.randn(2, 4),))[1]


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        ({}, torch.optim.Adam, {"lr": 1e-3, "weight_decay": 0}),
        ({"optimizer": "adam", "weight_decay": 0.1}, torch.optim.Adam, {"weight_decay": 0.1}),
        ({"optimizer": "adamw", "learning_rate": 0.2}, torch.optim.AdamW, {"lr": 0.2, "weight_decay": 0}),
        ({"optimizer": "sgd"}, torch.optim.SGD, {"momentum": 0, "weight_decay": 0}),
        ({"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01}, torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_settings_reach_the_optimizer(settings, kind, expected):
    found = optimizer_of(**settings)
    assert type(found) is kind
    assert {name: found.param_groups[0][name] for name in expected} == expected


def test_adam_decays_through_the_gradient_and_adamw_does_not():
    """One step on a gradient of 0: Adam's normalised step is the learning rate, AdamW's a share of the weight."""
    for kind, moved in (("adam", 0.1), ("adamw", 0.1 * 0.5 * 4)):
        found = optimizer_of(optimizer=kind, learning_rate=0.1, weight_decay=0.5)
        weight = found.param_groups[0]["params"][0]
        with torch.no_grad():
            weight.fill_(4)
        weight.grad = torch.zeros_like(weight)
        found.step()
        torch.testing.assert_close(weight, torch.full_like(weight, 4 - moved), rtol=1e-5, atol=0)


def test_what_is_0_is_left_out_of_the_configuration_as_before_there_was_such_a_setting():
    old = set("experiences scenario model optimizer learning_rate batch_size epochs device threads".split())
    assert set(resolve("split-digits", "naive", 0).config()["settings"]) == old
    both = resolve("split-digits", "naive", 0, optimizer="sgd", momentum=0.9, weight_decay=1e-4).config()["settings"]
    assert set(both) - old == {"momentum", "weight_decay"} and both["momentum"] == 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adan"}, "unknown optimizer 'adan': there are adam, adamw, sgd"),
        ({"momentum": 0.9}, "momentum must lie"),
        ({"optimizer": "sgd", "momentum": 1}, "momentum must lie"),
        ({"weight_decay": -1}, "weight decay must be a number of at least 0"),
        ({"weight_decay": float("nan")}, "weight decay must be a number of at least 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        resolve("split-digits", "naive", 0, **settings)


def test_a_strategy_with_its_own_optimizer_refuses_what_it_would_ignore():
    with pytest.raises(UserError, match="upgd has an optimizer of its own"):
        optimizer_of("upgd", weight_decay=0.1)
    assert optimizer_of("upgd", optimizer="adamw").param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_result_tells_how_many_parameters_the_network_has_at_the_end(tmp_path):
    run = resolve("split-digits", "naive", 0, experiences=1, epochs=1, model="mlp-1x7")
    assert train(run, tmp_path / "metrics.jsonl")["parameters"] == 64 * 7 + 7 + 7 * 10 + 10
