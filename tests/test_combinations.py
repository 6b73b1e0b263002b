"""Methods beside each other in one strategy: what holds of each of them alone still does, in either order."""

import functools

import numpy as np
import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, ReplayPlugin, SupervisedPlugin
from plugin_pairs import BOTH_ORDERS, ordered
from strategy_runs import acting, acts, with_dead_units
from stripping_streams import FixedHead, Network, Recorder, everything, naive, run, same, stream
from torch import nn

from benchmarks.models import build_model
from benchmarks.streams import StreamSettings, get_benchmark, stream_shape
from plasticity.errors import UserError
from plasticity.loading import TensorLoaderPlugin
from plasticity.metrics import plasticity_metrics
from plasticity.plugins import (
    ContinualBackpropPlugin,
    GradientDormancyPlugin,
    HareTortoisePlugin,
    HyperHypoPlugin,
    L2InitPlugin,
    ReDoPlugin,
    SelfNormalizedResetsPlugin,
    SynapticStrippingPlugin,
)
from strategies import STRATEGIES, Context, build_plugins, change_network, choose_optimizer

# --- replay and each strategy --------------------------------------------------------------------------------------


class SeenByTheLoss(SupervisedPlugin):
    """Notes the labels of every mini-batch that the loss sees."""

    def __init__(self):
        super().__init__()
        self.labels = {}

    def before_backward(self, strategy, **kwargs):
        assert len(strategy.mb_output) == len(strategy.mb_y)
        self.labels.setdefault(strategy.experience.current_experience, []).append(strategy.mb_y.tolist())


@functools.cache
def split_digits():
    settings = get_benchmark("split-digits").resolve(StreamSettings(0, 3))
    built = get_benchmark("split-digits").build(settings)
    return built, stream_shape(built, settings)


def with_replay(name):
    """Train on three experiences of digits, 144 at a time; returns the strategy, the reports and what the loss saw."""
    built, shape = split_digits()
    combined = f"replay:mem_size=90+{name}"
    example = (torch.rand(4, *shape.input_shape),)
    torch.manual_seed(0)

    def network():
        return change_network(combined, with_dead_units(build_model("mlp-3x128", *shape)), example)

    model = network()
    optimizer = choose_optimizer(combined, list(model.parameters()), "adam", 5e-3)
    plugins = build_plugins(combined, Context(network, 0, 1, 144, 3))
    seen = SeenByTheLoss()
    strategy = Naive(
        model=model,
        optimizer=optimizer or torch.optim.Adam(model.parameters(), lr=5e-3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=144,
        plugins=[*plugins, seen, TensorLoaderPlugin()],
        evaluator=EvaluationPlugin(loggers=[Recorder()]),
    )
    for experience in built.train_stream:
        strategy.train(experience)
    return strategy, [report for plugin in plugins for report in getattr(plugin, "history", ())], seen.labels


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "replay"])
def test_replay_and_each_strategy(name):
    strategy, reports, seen = with_replay(acting(name))
    assert acts(name, strategy, reports)
    classes = [experience.classes_in_this_experience for experience in split_digits()[0].train_stream]
    for number, batches in seen.items():
        size = len(split_digits()[0].train_stream[number].dataset)
        new = [[label for label in labels if label in classes[number]] for labels in batches]
        old = [[label for label in labels if label not in classes[number]] for labels in batches]
        assert sum(map(len, new)) == size and max(map(len, new)) == 144
        for labels in old:  # as many as of the new ones, while there are
            assert bool(labels) == (number > 0) and set(labels) <= {c for past in classes[:number] for c in past}
    memory = next(plugin for plugin in strategy.plugins if isinstance(plugin, ReplayPlugin)).storage_policy.buffer
    assert len(memory) == 90 and set(memory.targets) == {label for part in classes for label in part}
    again, _, _ = with_replay(acting(name))
    one, other = strategy.model.state_dict(), again.model.state_dict()
    assert same(list(one.values()), list(other.values()))
    assert all(bool(torch.isfinite(value).all()) for value in one.values())


# --- L2 Init and ReDo ----------------------------------------------------------------------------------------------


class Gradients(SupervisedPlugin):
    """Notes what each parameter and its gradient is when it is asked, right after the backward pass."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def after_backward(self, strategy, **kwargs):
        named = strategy.model.named_parameters()
        self.noted.append({name: (p.detach().clone(), p.grad.clone()) for name, p in named})


@BOTH_ORDERS
def test_l2_init_pulls_new_units_to_the_initial_values(first):
    """The gradient is 2 s (theta - theta_0) by hand, before and after units of ReDo; theta_0 never changes."""
    redo, pull = ReDoPlugin(every=4, tau=0.05), L2InitPlugin(0.3)
    before, after = Gradients(), Gradients()
    torch.manual_seed(0)
    initial = {name: value.detach().clone() for name, value in FixedHead().named_parameters()}
    pair = [before, *ordered(redo, pull, first), after]
    run(pair, FixedHead)
    assert len(before.noted) == len(after.noted) == 18
    for plain, pulled in zip(before.noted, after.noted, strict=True):
        for name, start in initial.items():
            value, gradient = plain[name]
            expected = gradient.double() + 2 * 0.3 * (value.double() - start.double())
            np.testing.assert_allclose(pulled[name][1], expected, rtol=1e-5, atol=1e-7)
    assert {name: bool(torch.equal(value, initial[name])) for name, value in pull.initial.items()} == dict.fromkeys(
        initial, True
    )
    times = {entry["iteration"]: entry["units"].get("features.0", []) for entry in redo.history}
    assert any(times.values())
    for time, units in times.items():  # new units were drawn, not set to what they had been
        if units and time < 18:
            assert (before.noted[time]["features.0.weight"][0][units] != initial["features.0.weight"][units]).any()


class After(SupervisedPlugin):
    """Keeps the parameters as they are after some iteration."""

    def __init__(self, iteration):
        super().__init__()
        self.iteration, self.parameters = iteration, {}

    def after_training_iteration(self, strategy, **kwargs):
        self.iteration -= 1
        if self.iteration == 0:
            self.parameters = {name: value.detach().clone() for name, value in strategy.model.named_parameters()}


@BOTH_ORDERS
def test_a_new_unit_goes_back_at_the_rate_of_the_penalty_where_the_loss_is_flat(first):
    """A step of plain gradient descent leaves 1 - 2 lr s = 0.9 of the way to the initial value."""
    redo, pull, new = ReDoPlugin(every=3, tau=0.05), L2InitPlugin(0.5), After(3)
    torch.manual_seed(0)
    model = FixedHead()
    initial = {name: value.detach().clone() for name, value in model.named_parameters()}
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=lambda output, labels: 0 * output.sum(),
        train_mb_size=5,
        plugins=[*ordered(redo, pull, first), new],
        evaluator=EvaluationPlugin(loggers=[Recorder()]),
    )
    strategy.train(stream(1, size=24).train_stream[0])  # 5 iterations, 2 of them behind the treatment
    units = redo.history[0]["units"]["features.0"]
    assert len(redo.history) == 1 and len(units) >= 3
    assert (new.parameters["features.0.weight"][units] != initial["features.0.weight"][units]).any(1).all()
    for name, value in model.named_parameters():
        way = new.parameters[name].double() - initial[name].double()
        np.testing.assert_allclose(value.detach(), initial[name].double() + 0.9**2 * way, rtol=1e-5, atol=1e-7)


# --- stripping and EWC ---------------------------------------------------------------------------------------------


class RemovedStaysRemoved(SupervisedPlugin):
    """Looks before every forward pass whether removed weights are 0, and notes gradients that would move them."""

    def __init__(self, stripping):
        super().__init__()
        self.stripping, self.checks, self.pulled, self.losses = stripping, 0, 0.0, []

    def before_forward(self, strategy, **kwargs):
        for name in self.stripping.masks:
            weight = strategy.model.get_submodule(name).weight
            assert not weight[~self.stripping.masks.kept(strategy.model, name)].any()
            self.checks += 1

    before_eval_forward = before_forward

    def after_backward(self, strategy, **kwargs):
        self.losses.append(float(strategy.loss))
        for name in self.stripping.masks:
            removed = ~self.stripping.masks.kept(strategy.model, name)
            self.pulled += float(strategy.model.get_submodule(name).weight.grad[removed].abs().sum())


@BOTH_ORDERS
@pytest.mark.parametrize("mode", ["separate", "online"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_stripping_removed_stays_removed_though_ewc_pulls_to_old_values(first, mode, optimizer):
    stripping = SynapticStrippingPlugin()
    ewc = EWCPlugin(1.0, mode=mode, decay_factor=0.5 if mode == "online" else None)
    check = RemovedStaysRemoved(stripping)
    strategy = run([*ordered(stripping, ewc, first), check], evaluate=True, optimizer=optimizer)
    assert stripping.masks.removed() > 0 and check.checks > 10
    assert check.pulled > 0  # EWC would move them
    assert np.isfinite(check.losses).all()
    found = [data.data for importances in ewc.importances.values() for data in importances.values()]
    assert found and all(bool(torch.isfinite(importance).all()) for importance in found)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in everything(strategy))


# --- several that watch the same forward passes --------------------------------------------------------------------

WATCHING = {
    "continual-backprop": lambda: ContinualBackpropPlugin(replacement_rate=0.06, maturity=2, transfer=True),
    "self-normalized-resets": lambda: SelfNormalizedResetsPlugin(
        maximum_age=24, refresh=4, enough=2, check_every=2, maximum_share=0.2
    ),
    "gradient-dormancy": lambda: GradientDormancyPlugin(every=3, tau=0.05, batches=2),
}
IDLE = {
    "continual-backprop": lambda: ContinualBackpropPlugin(replacement_rate=0),
    "self-normalized-resets": lambda: SelfNormalizedResetsPlugin(maximum_share=0),
    "gradient-dormancy": lambda: GradientDormancyPlugin(every=3, maximum_share=0, batches=2),
}


@BOTH_ORDERS
@pytest.mark.parametrize("watching", WATCHING)
@pytest.mark.parametrize("idle", IDLE)
def test_who_watches_sees_the_same_beside_another_watcher(watching, idle, first):
    alone, beside, other = WATCHING[watching](), WATCHING[watching](), IDLE[idle]()
    expected = everything(run([alone]))
    found = everything(run(ordered(beside, other, first)))
    assert same(found, expected) and beside.history == alone.history
    assert sum(entry["recycled"] for entry in alone.history) > 0


@pytest.mark.parametrize("watching", WATCHING)
def test_who_watches_sees_the_same_beside_metrics(watching):
    found = []
    for metrics in [], plasticity_metrics(minibatch=True):
        plugin = WATCHING[watching]()
        torch.manual_seed(0)
        strategy = naive(Network(), [plugin])
        strategy.evaluator.metrics += metrics
        for experience in stream().train_stream:
            strategy.train(experience)
        found.append((everything(strategy), plugin.history))
    assert same(found[0][0], found[1][0]) and found[0][1] == found[1][1]


# --- ReDo and continual backprop -----------------------------------------------------------------------------------


class NewUnitsAreYoung(SupervisedPlugin):
    """Looks after each of ReDo's treatments at what continual backprop knows of the units made new."""

    def __init__(self, redo, backprop):
        super().__init__()
        self.redo, self.backprop, self.checks = redo, backprop, 0

    def after_training_iteration(self, strategy, **kwargs):
        if self.redo.history and self.redo.history[-1]["iteration"] == strategy.clock.train_iterations + 1:
            for name, units in self.redo.history[-1]["units"].items():
                known = self.backprop.state_dict()["units"][name]
                assert not known["age"][units].any() and not known["utility"][units].any()
                self.checks += len(units)


@BOTH_ORDERS
def test_units_that_redo_made_new_are_young_for_continual_backprop(first):
    redo, backprop = ReDoPlugin(every=3, tau=0.05), WATCHING["continual-backprop"]()
    check = NewUnitsAreYoung(redo, backprop)
    run([*ordered(redo, backprop, first), check], FixedHead)
    assert check.checks > 0
    assert sum(entry["recycled"] for entry in backprop.history) > 0


# --- copies of one plugin ------------------------------------------------------------------------------------------


def test_two_l2_inits_are_one_of_the_strengths_together():
    one = everything(run([L2InitPlugin(0.02), L2InitPlugin(0.03)]))
    other = everything(run([L2InitPlugin(0.05)]))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not same(other, everything(run([L2InitPlugin(0.03)])))


@BOTH_ORDERS
def test_two_strippings_keep_what_each_removed(first):
    strippings = SynapticStrippingPlugin("whitaker2023"), SynapticStrippingPlugin(every=4, fraction=0.2, rounds=1)
    checks = [RemovedStaysRemoved(stripping) for stripping in strippings]
    run([*ordered(*strippings, first), *checks], FixedHead)
    assert all(stripping.masks.removed() > 0 for stripping in strippings) and all(check.checks for check in checks)


@BOTH_ORDERS
def test_two_redos_act_at_their_own_times(first):
    often, seldom = ReDoPlugin(every=3, tau=0.0), ReDoPlugin(every=4, tau=0.5, seed=1)
    run(ordered(often, seldom, first), FixedHead)
    assert [entry["iteration"] for entry in often.history] == [3, 6, 9, 12, 15, 18]
    assert [entry["iteration"] for entry in seldom.history] == [4, 8, 12, 16]
    assert sum(entry["recycled"] for entry in seldom.history) > 0


@pytest.mark.parametrize("kind", [HareTortoisePlugin, HyperHypoPlugin])
def test_two_that_cannot_work_together_are_refused_before_the_first_step(kind):
    model = Network()
    before = [value.clone() for value in model.features.parameters()]
    with pytest.raises(UserError, match=f"a strategy can have one {kind.__name__}") as error:
        run([kind(), kind()], lambda: model)
    assert "\n" not in str(error.value)
    assert same(list(model.features.parameters()), before)


def test_hyper_hypo_units_can_adapt_beside_others_that_are_pruned():
    adapting, pruning = HyperHypoPlugin(percent=10), HyperHypoPlugin("prune", percent=10)
    run([pruning, adapting], FixedHead)
    gone = pruning.pruned["features.0"].nonzero().flatten().tolist()
    assert gone and not set(gone) & set(adapting.history[-1]["units"]["features.0"])
