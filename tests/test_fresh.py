"""A new network for every experience, alone and with methods that act on it."""

import copy

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import SupervisedPlugin
from strategy_runs import acting
from torch import nn

from benchmarks.models import build_model
from benchmarks.streams import StreamSettings, get_benchmark, stream_shape
from plasticity.errors import UserError
from plasticity.optim import UPGD
from strategies import STRATEGIES, Context, build_plugins
from strategies.fresh import renew


class Reseed(SupervisedPlugin):
    """Sets the global seed at the start of each epoch, so that mini-batches come in the same order."""

    def before_training_epoch(self, strategy, *args, **kwargs):
        torch.manual_seed(5)


class Digits:
    """Split digits, on which networks are made, kept, and trained."""

    def __init__(self):
        settings = get_benchmark("split-digits").resolve(StreamSettings(0, 5, "domain"))
        stream = get_benchmark("split-digits").build(settings)
        self.experiences, self.shape = list(stream.train_stream), stream_shape(stream, settings)
        self.made = []

    def network(self):
        self.made.append(build_model("mlp-3x128", *self.shape))
        return copy.deepcopy(self.made[-1])

    def strategy(self, name, model, optimizer=None):
        plugins = build_plugins(name, Context(self.network, 0, 2, 32, 5))
        return Naive(
            model=model,
            optimizer=(optimizer or (lambda p: torch.optim.Adam(p, lr=1e-2)))(model.parameters()),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=32,
            train_epochs=2,
            plugins=[*plugins, Reseed()],
            evaluator=None,
        )


REFUSED = ("demon-pruning-shrink", "plasticity-injection")
METHODS = [name for name in STRATEGIES if name not in ("naive", "fresh", "replay", "upgd", *REFUSED)]


@pytest.mark.parametrize("name", ["naive", *(acting(name) for name in METHODS), "redo:every=5+l2-init"])
def test_the_last_network_is_one_that_never_had_another_experience(name):
    """It is the one that a run on experience 3 alone makes from the same weights."""
    digits = Digits()
    continued = digits.strategy(f"fresh+{name}", digits.network())
    for experience in digits.experiences[:3]:
        continued.train(experience)
    alone = digits.strategy(name, copy.deepcopy(digits.made[-1]))
    alone.train(digits.experiences[2])
    for mine, other in zip(continued.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    for plugin, other in zip(continued.plugins[1:], alone.plugins, strict=False):
        told = [{key: value for key, value in entry.items() if key != "skipped"} for entry in reports(other)]
        assert not told or [*reports(plugin)][-len(told) :] == told
        assert not told or len(reports(plugin)) > len(told)  # that of the run goes on over all experiences


def reports(plugin):
    return getattr(plugin, "history", [])


def test_an_optimizer_begins_anew_too():
    digits = Digits()
    rule = {"lr": 0.1, "sigma": 0.0}
    continued = digits.strategy("fresh", digits.network(), lambda p: UPGD(p, **rule))
    for experience in digits.experiences[:2]:
        continued.train(experience)
    alone = digits.strategy("naive", copy.deepcopy(digits.made[-1]), lambda p: UPGD(p, **rule))
    alone.train(digits.experiences[1])
    for mine, other in zip(continued.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_what_methods_have_begun_with_is_in_the_state():
    digits = Digits()
    whole, first = (digits.strategy("fresh+synaptic-stripping:every=epoch", digits.network()) for _ in range(2))
    for run in (whole, first):
        run.train(digits.experiences[0])
    second = digits.strategy("fresh+synaptic-stripping:every=epoch", copy.deepcopy(first.model))
    for old, new in zip(first.plugins[:2], second.plugins[:2], strict=True):
        new.load_state_dict(old.state_dict())
    assert len(second.plugins[1].masks) > 0
    torch.manual_seed(1)
    second.train(digits.experiences[1])
    alone = digits.strategy("synaptic-stripping:every=epoch", copy.deepcopy(digits.made[-1]))
    alone.train(digits.experiences[1])
    for mine, other in zip(second.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_what_the_network_is_made_of_is_refused(name):
    digits = Digits()
    with pytest.raises(UserError, match="fresh cannot go with"):
        digits.strategy(f"fresh+{name}", digits.network()).train(digits.experiences[0])


def test_fresh_comes_first():
    digits = Digits()
    with pytest.raises(UserError, match=r"name fresh first, as in fresh\+redo"):
        digits.strategy("redo+fresh", digits.network()).train(digits.experiences[0])


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
