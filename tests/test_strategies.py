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
from strategies.fresh import FreshNetworkPlugin, renew


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


def test_registration_takes_one_line_and_refuses_what_cannot_be_a_name(monkeypatch):
    monkeypatch.setattr("strategies.registry.STRATEGIES", dict(STRATEGIES))
    seen = []
    register("mine", lambda context: seen.append(context.epochs) or [], "a strategy of mine")
    assert build_plugins("mine", Context(nn.Identity, 0, 7, 32, 3)) == [] and seen == [7]
    for name in ("mine", "a+b", "a/b", "", ".hidden", "a b"):
        with pytest.raises(UserError):
            register(name, lambda context: [])


def test_fresh_trains_a_network_that_owes_nothing_to_earlier_experiences():
    """The network after experience 2 is the one that a run on experience 2 alone makes from the same weights."""
    settings = get_benchmark("split-digits").resolve(StreamSettings(0, 5, "domain"))
    stream = get_benchmark("split-digits").build(settings)
    shape = stream_shape(stream, settings)
    made = []

    def network():
        made.append(build_model("mlp-3x128", *shape))
        return copy.deepcopy(made[-1])

    def strategy(model, plugins):
        return Naive(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=32,
            plugins=plugins,
            evaluator=None,
        )

    torch.manual_seed(0)
    continued = strategy(build_model("mlp-3x128", *shape), [FreshNetworkPlugin(network), Reseed(5)])
    for experience in list(stream.train_stream)[:2]:
        continued.train(experience)
    alone = strategy(copy.deepcopy(made[-1]), [Reseed(5)])
    alone.train(list(stream.train_stream)[1])
    for mine, other in zip(continued.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, other)


class Reseed:
    """Sets the global seed at the start of each epoch, so that mini-batches come in the same order."""

    def __new__(cls, seed):
        from avalanche.training.plugins import SupervisedPlugin

        class Plugin(SupervisedPlugin):
            def before_training_epoch(self, strategy, *args, **kwargs):
                torch.manual_seed(seed)

        return Plugin()


def test_renewing_overwrites_parameters_and_buffers_in_place():
    def network():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

    model, new = network(), network()
    model(torch.randn(8, 3))
    before = list(model.parameters())
    renew(model, new)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), new.state_dict().values(), strict=True))


def test_renewing_a_grown_head_draws_new_weights():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6))
    new = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = model[2].weight.clone()
    renew(model, new)
    assert torch.equal(model[0].weight, new[0].weight) and not torch.equal(model[2].weight, before)
    grown = nn.Sequential(nn.Linear(3, 4))
    grown[0] = nn.ParameterList([nn.Parameter(torch.zeros(2))])
    with pytest.raises(UserError, match="cannot be started anew"):
        renew(grown, new)
