"""Hare and tortoise against a loop, and which of the two a strategy's model is when."""

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from stripping_streams import FixedHead
from torch import nn
from weight_methods import Network, copy_of, everything, naive, run, same, stream

from plasticity.methods.hare_tortoise import Tortoise
from plasticity.plugins import HareTortoisePlugin


class Normalised(FixedHead):
    def __init__(self):
        super().__init__()
        self.features.append(nn.BatchNorm1d(10))


class ByHand(SupervisedPlugin):
    """The same as a loop over names: the average, and the hare put back to it."""

    def __init__(self, momentum, every, clear):
        super().__init__()
        self.momentum, self.every, self.clear = momentum, every, clear
        self.slow, self.steps = None, 0

    def before_training_exp(self, strategy, **kwargs):
        if self.slow is None:
            self.slow = copy_of(strategy.model)

    def after_update(self, strategy, **kwargs):
        self.steps += 1
        for name, value in strategy.model.state_dict().items():
            if value.is_floating_point():
                self.slow[name] = torch.lerp(self.slow[name], value, 1 - self.momentum)  # as rounded there
        if self.every and self.steps % self.every == 0:
            with torch.no_grad():
                for name, value in strategy.model.state_dict().items():
                    if value.is_floating_point():
                        value.copy_(self.slow[name])
            if self.clear:
                strategy.optimizer.state.clear()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("every", "state"), [(4, "keep"), (5, "clear"), (None, "keep")])
def test_against_a_loop(every, state, optimizer):
    plugin = HareTortoisePlugin(momentum=0.8, reset_every=every, optimizer_state=state)
    mine = run([plugin], Normalised, optimizer=optimizer, shuffle=False)
    by_hand = ByHand(0.8, every, state == "clear")
    theirs = run([by_hand], Normalised, optimizer=optimizer, shuffle=False)
    for name, value in mine.model.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, by_hand.slow[name])
            assert torch.equal(plugin.tortoise.values[name], theirs.model.state_dict()[name])
        else:
            assert torch.equal(value, theirs.model.state_dict()[name])
    assert [entry["steps"] for entry in plugin.history] == [6, 6, 6]
    assert sum(entry["resets"] for entry in plugin.history) == (18 // every if every else 0)
    assert all(entry["relative_distance"] >= 0 for entry in plugin.history)


def test_who_is_who_and_when():
    """Others see the hare while it trains, and the tortoise between experiences and in evaluations."""

    class Looks(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.seen = []

        def note(self, what, strategy):
            self.seen.append((what, plugin.model_is_tortoise, copy_of(strategy.model)))

        def before_training_exp(self, strategy, **kwargs):
            self.note("training", strategy)

        def before_forward(self, strategy, **kwargs):
            self.note("training", strategy)

        def after_update(self, strategy, **kwargs):
            self.note("training", strategy)

        def after_training_exp(self, strategy, **kwargs):
            self.note("between", strategy)

        def before_eval_forward(self, strategy, **kwargs):
            self.note("evaluation", strategy)

    plugin, looks = HareTortoisePlugin(momentum=0.9, reset_every=None), Looks()
    strategy = run([plugin, looks], FixedHead, evaluate=True, eval_every=1)
    while looks.seen[0][0] == "evaluation":  # before there is a tortoise
        del looks.seen[0]
    assert {what for what, _, _ in looks.seen} == {"training", "between", "evaluation"}
    assert all(tortoise == (what != "training") for what, tortoise, _ in looks.seen)
    assert plugin.model_is_tortoise and same(list(looks.seen[-1][2].values()), everything(strategy)[:6])
    hare = plugin.tortoise.values
    last = [values for what, _, values in looks.seen if what == "training"][-1]
    assert all(torch.equal(hare[name], value) for name, value in last.items())


def test_without_resets_the_hare_trains_as_if_alone():
    plugin = HareTortoisePlugin(momentum=0.9, reset_every=None)
    mine, alone = run([plugin], evaluate=True, eval_every=1), run([], evaluate=True, eval_every=1)
    for name, value in alone.model.named_parameters():
        assert torch.equal(plugin.tortoise.values[name], value)
    assert not same(everything(mine), everything(alone))


def test_a_head_grows_for_both():
    plugin = HareTortoisePlugin(momentum=0.9, reset_every=5)
    torch.manual_seed(0)
    strategy = naive(Network(), [plugin])
    for number, experience in enumerate(stream().train_stream):
        strategy.train(experience)
        weight = strategy.model.classifier.classifier.weight
        assert len(weight) == 2 * (number + 1) == len(plugin.tortoise.values["classifier.classifier.weight"])
        assert not torch.equal(weight, plugin.tortoise.values["classifier.classifier.weight"])


def test_the_average_in_numpy():
    model, tortoise = nn.BatchNorm1d(3), Tortoise()
    tortoise.follow(model)
    expected = {name: value.double().numpy() for name, value in copy_of(model).items() if value.is_floating_point()}
    assert set(tortoise.values) == set(expected) == {"weight", "bias", "running_mean", "running_var"}
    for _ in range(5):
        with torch.no_grad():
            for name in expected:
                value = model.state_dict()[name].add_(torch.randn(3))
                expected[name] = 0.7 * expected[name] + 0.3 * value.double().numpy()
        tortoise.update(0.7)
    for name, value in expected.items():
        torch.testing.assert_close(tortoise.values[name].double().numpy(), value, rtol=1e-5, atol=1e-6)
    tortoise.give()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in tortoise.values.items())


def test_exchanging_twice_changes_nothing_also_when_a_layer_grows_in_between():
    model = nn.Linear(3, 2)
    tortoise = Tortoise()
    tortoise.follow(model)
    with torch.no_grad():
        model.weight.add_(1)
    tortoise.update(0.5)
    hare, slow = copy_of(model), {name: value.clone() for name, value in tortoise.values.items()}
    tortoise.exchange(model)
    assert torch.equal(model.weight, slow["weight"]) and torch.equal(tortoise.values["weight"], hare["weight"])
    grown = torch.cat([model.weight.detach(), torch.full((1, 3), 9.0)])
    model.weight, model.bias = nn.Parameter(grown), nn.Parameter(torch.cat([model.bias.detach(), torch.ones(1)]))
    tortoise.exchange(model)
    assert torch.equal(model.weight[:2], hare["weight"]) and torch.equal(tortoise.values["weight"][:2], slow["weight"])
    assert model.weight[2].eq(9).all() and tortoise.values["weight"][2].eq(9).all()
