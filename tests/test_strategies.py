"""Strategies: names, combination, and each of them end to end in Avalanche."""

import copy

import pytest
import torch
from avalanche.training import Naive
from torch import nn

from benchmarks.models import build_model
from benchmarks.streams import StreamSettings, get_benchmark, stream_shape
from plasticity.errors import UserError
from strategies import STRATEGIES, Context, build_plugins, parse, register


def small_run(combined, benchmark="split-digits", scenario=None, experiences=3, seed=0):
    """Train a strategy on a short stream; returns the strategy and the networks after each experience."""
    settings = get_benchmark(benchmark).resolve(StreamSettings(seed, experiences, scenario))
    stream = get_benchmark(benchmark).build(settings)
    shape = stream_shape(stream, settings)
    torch.manual_seed(seed)

    def network():
        return build_model("mlp-3x128", *shape)

    model = network()
    plugins = build_plugins(combined, Context(network, seed, 1, 32, experiences))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=1,
        plugins=plugins,
        evaluator=None,
    )
    snapshots = []
    for experience in stream.train_stream:
        strategy.train(experience)
        snapshots.append(copy.deepcopy(strategy.model.state_dict()))
    return strategy, snapshots


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize("name", [*STRATEGIES, "replay+synaptic-stripping", "fresh+replay", "replay+hyper-hypo"])
def test_every_strategy_runs_and_repeats(name, scenario):
    first, second = small_run(name, scenario=scenario)[1], small_run(name, scenario=scenario)[1]
    assert len(first) == 3
    for one, other in zip(first, second, strict=True):
        assert all(torch.isfinite(one[key]).all() for key in one if one[key].is_floating_point())
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_names_of_the_first_release_are_there():
    assert {"naive", "fresh", "replay", "synaptic-stripping", "hyper-hypo", "hyper-hypo-random"} <= set(STRATEGIES)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown strategy 'replya' \(did you mean replay\?\): known are naive, fresh"):
        parse("naive+replya")
    with pytest.raises(UserError, match="twice"):
        parse("replay+replay")


def test_an_optimizer_excludes_no_layers():
    (chosen,) = parse("upgd:exclude=trunk.linear1")
    with pytest.raises(UserError, match="'upgd:exclude=trunk.linear1': upgd has no exclude: .* give .* a group"):
        chosen.optimizer([nn.Parameter(torch.zeros(2))], "sgd", 0.1)


def test_registration_takes_one_line_and_refuses_what_cannot_be_a_name(monkeypatch):
    monkeypatch.setattr("strategies.registry.STRATEGIES", dict(STRATEGIES))
    seen = []
    register("mine", lambda context: seen.append(context.epochs) or [], "a strategy of mine")
    assert build_plugins("mine", Context(nn.Identity, 0, 7, 32, 3)) == [] and seen == [7]
    for name in ("mine", "a+b", "a/b", "", ".hidden", "a b"):
        with pytest.raises(UserError):
            register(name, lambda context: [])
