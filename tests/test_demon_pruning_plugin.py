"""Demon pruning in Avalanche strategies, from end to end."""

import copy
import pickle

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.training.plugins import (
    GDumbPlugin,
    GEMPlugin,
    LwFPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)
from demon_runs import MODES, STRONG, Bookkeeping, check_bookkeeping, demon, pruned, widths
from stripping_streams import (
    DEAD,
    FixedHead,
    MasksHold,
    MultiHead,
    Network,
    Recorder,
    everything,
    naive,
    run,
    same,
    stream,
)
from torch import nn

from plasticity.errors import UserError
from plasticity.groups import UnitGroup
from plasticity.methods.demon_schedule import one_cycle
from plasticity.plugins import DemonPruningPlugin


@MODES
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_strength_0_is_bit_identical_to_no_plugin(mode, optimizer):
    plugin = demon(mode, regularisation=0, noise_std=0, every=1)
    idle = everything(run([plugin], optimizer=optimizer, eval_every=1))
    state = torch.get_rng_state()
    assert same(idle, everything(run([], optimizer=optimizer, eval_every=1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert plugin.history == []


@MODES
def test_the_same_seed_gives_the_same_run_and_another_seed_another(mode):
    runs = [demon(mode, seed=seed) for seed in (0, 0, 1)]
    ends = [everything(run([plugin], FixedHead)) for plugin in runs]
    assert same(ends[0], ends[1]) and runs[0].history == runs[1].history
    assert not same(ends[0], ends[2])


@MODES
def test_evaluations_and_passes_of_other_plugins_do_not_count(mode):
    alone = demon(mode)
    end = everything(run([alone], FixedHead, shuffle=False))
    for others, settings in ([], {"eval_every": 1}), ([LwFPlugin(0.0)], {}), ([GEMPlugin(8, 0.5)], {}):
        plugin = demon(mode)
        strategy = run([*others, plugin], FixedHead, shuffle=False, evaluate=True, **settings)
        if not any(isinstance(other, GEMPlugin) for other in others):  # it changes gradients
            assert same(everything(strategy), end) and plugin.history == alone.history
        else:
            assert pruned(plugin) >= DEAD


@MODES
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("model", [Network, MultiHead, FixedHead])
def test_heads_grow_and_training_goes_on(mode, model, optimizer):
    plugin, check = demon(mode, every=2), Bookkeeping()
    strategy = run([plugin, check], model, stream(task_labels=model is MultiHead), evaluate=True, optimizer=optimizer)
    assert pruned(plugin) >= DEAD and check.checks == 18
    check_bookkeeping(strategy)
    if mode == "shrink":
        gone = sum(entry["removed"] for entry in plugin.history)
        assert sum(widths(strategy)) == 30 - gone == plugin.history[-1]["alive_units"]
        assert sum(p.numel() for p in strategy.model.parameters()) <= plugin.history[-1]["parameters"]
    else:
        assert widths(strategy) == [20, 10]
        hidden = {name: int(mask.sum()) for name, mask in plugin.pruned.units.items()}
        assert sum(hidden.values()) == pruned(plugin) == 30 - plugin.history[-1]["alive_units"]
    assert all(entry["output_shift"] < 1e-5 for entry in plugin.history)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masks_hold_at_every_step(optimizer):
    plugin = demon(every=2)
    looks = MasksHold(plugin)
    run([plugin, looks], optimizer=optimizer)
    assert looks.checks > 10


class Spy(SupervisedPlugin):
    """Notes weights before and after the plugin under test comes to them, and the strengths."""

    def __init__(self, plugin=None):
        super().__init__()
        self.plugin, self.rows, self.strengths = plugin, [], []

    def after_backward(self, strategy, **kwargs):
        self.gradients = [p.grad.clone() for p in strategy.model.parameters()]
        if self.plugin is not None:
            self.strengths.append(self.plugin.strength(1.0))

    def after_update(self, strategy, **kwargs):
        self.rows.append([p.detach().clone() for p in strategy.model.parameters()])


def test_a_step_is_the_update_plus_noise_and_the_gradient_of_the_penalty():
    class Killer(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            if strategy.clock.train_iterations == 2:
                strategy.model.features[0].bias.data[DEAD] = -20  # a unit that has fired before

    before, plugin = Spy(), demon(every="experience", span=1.0)
    after = Spy(plugin)
    torch.manual_seed(0)
    strategy = naive(FixedHead(), [Killer(), before, plugin, after])
    strategy.train(stream().train_stream[0])
    steps = 2 * 24 // 8
    assert after.strengths == [one_cycle(step, steps, 1.0) for step in range(steps)]
    for number, (plain, noisy) in enumerate(zip(before.rows, after.rows, strict=True)):
        std = one_cycle(number, steps, STRONG["noise_std"])
        for index, (one, other) in enumerate(zip(plain, noisy, strict=True)):
            moved = (other - one).flatten()
            if index < 2:  # the first layer's weight and bias: its dead units
                dead = DEAD if number < 2 else DEAD + 1
                assert torch.equal(one[:dead], other[:dead])
                moved = (other - one)[dead:].flatten()
            assert std < 1e-6 or 0 < moved.abs().max() < 5 * std  # less is lost in rounding
    moved = torch.cat([(b - a).flatten() for a, b in zip(before.rows[2], after.rows[2], strict=True)])
    moved = moved[moved != 0]
    assert moved.std() == pytest.approx(one_cycle(2, steps, STRONG["noise_std"]), rel=0.2)
    last = before.gradients, after.gradients
    lam = one_cycle(steps - 1, steps, STRONG["regularisation"])
    for index, (name, _) in enumerate(strategy.model.named_parameters()):
        added = last[1][index] - last[0][index]
        if name in ("features.0.weight", "features.3.weight"):
            torch.testing.assert_close(added, lam * after.rows[-2][index], rtol=1e-3, atol=1e-7)
        else:
            assert not added.any()


def test_the_cycle_begins_anew_with_each_experience_and_ends_with_the_span():
    plugin = demon(span=0.5, every="experience")
    spy = Spy(plugin)
    run([plugin, spy], FixedHead)
    once = [one_cycle(step, 3, 1.0) for step in range(6)]
    assert spy.strengths == once * 3 and once[3:] == [0, 0, 0]
    plugin = demon(span=0.5, total_steps=18)
    spy = Spy(plugin)
    run([plugin, spy], FixedHead)
    assert spy.strengths == [one_cycle(step, 9, 1.0) for step in range(18)]


def test_steps_of_replay_and_of_online_streams_are_counted():
    plugin = demon(span=1.0, every="experience")
    spy = Spy(plugin)
    run([plugin, ReplayPlugin(16), spy], FixedHead)
    steps = len(spy.strengths)
    starts = [i for i, value in enumerate(spy.strengths) if value == pytest.approx(1 / 25)]
    assert len(starts) == 3 and spy.strengths[-1] == pytest.approx(1 / 25e4) and steps >= 18
    online = split_online_stream(stream().train_stream, 8, access_task_boundaries=True)
    plugin = demon(span=1.0, every="experience")
    spy = Spy(plugin)
    run([plugin, spy], FixedHead, list(online), train_epochs=1)
    assert spy.strengths == [one_cycle(step, 3, 1.0) for step in range(3)] * 3
    online = list(split_online_stream(stream().train_stream, 8, access_task_boundaries=False))
    with pytest.raises(UserError, match="give total_steps"):
        run([demon(every=3)], FixedHead, online, train_epochs=1)
    run([demon(every=3, total_steps=9)], FixedHead, online, train_epochs=1)


class Normalised(Network):
    """With BatchNorm in front of the activations."""

    def __init__(self):
        super().__init__(dead=False, dropout=0.0)
        self.features = nn.Sequential(
            nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10), nn.BatchNorm1d(10), nn.ReLU()
        )


def test_a_stronger_penalty_kills_more_units():
    counts = []
    for strength in (1e-4, 0.1, 1.0):
        plugin = demon(regularisation=strength, noise_std=0.0)
        run([plugin], Normalised, train_epochs=20)
        counts.append(pruned(plugin))
    assert counts[0] * 2 < counts[1] <= counts[2]


def test_units_are_judged_on_classes_in_equal_numbers(monkeypatch):
    import plasticity.plugins.demon_pruning as module

    seen, plain = [], module.balanced

    def spy(probe, labels, size):
        chosen = plain(probe, labels, size)
        numbers = [(torch.cat([b[0] for b in p.batches])[:, 0] * 1000).round().int() for p in (probe, chosen)]
        assert torch.equal((numbers[0] - 1) // 12, labels)  # 12 samples of each class, one class after the other
        seen.append((len(numbers[0]), torch.bincount((numbers[1] - 1) // 12 % 2).tolist()))
        return chosen

    monkeypatch.setattr(module, "balanced", spy)
    plugin = demon(probe_samples=8)
    run([plugin], FixedHead)
    assert seen == [(16, [4, 4])] * 6
    assert all(entry["samples"] == 8 for entry in plugin.history)


class Stream(nn.Module):
    """BatchNorm, a shortcut and a flatten."""

    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.norm_b = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.c, self.norm_c = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.fc, self.head = nn.Linear(6 * 16, 8), nn.Linear(8, 6)
        with torch.no_grad():
            self.norm_a.bias[1] = self.norm_b.bias[2] = self.norm_c.bias[3] = self.fc.bias[4] = -50

    def forward(self, x):
        h = torch.relu(self.norm_a(self.a(x)))
        h = torch.relu(self.norm_c(self.c(torch.relu(self.norm_b(self.b(h))))) + h)
        return self.head(torch.relu(self.fc(h.flatten(1))))


@MODES
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_convolutions_with_batch_norm_and_a_shortcut(mode, optimizer):
    plugin, check = demon(mode, every=3, regularisation=1e-3), Bookkeeping()
    strategy = run([plugin, check], Stream, stream(shape=(2, 4, 4)), optimizer=optimizer, evaluate=True)
    model, units = strategy.model, plugin.history[0]["units"]
    assert 2 in units["b"] and 4 in units["fc"] and 1 not in units.get("b", [])
    if mode == "shrink":
        assert model.b.weight.shape[0] == model.norm_b.num_features == model.c.weight.shape[1] < 6
        assert model.a.weight.shape[0] == model.c.weight.shape[0] == 6  # the stream
        assert model.fc.weight.shape == (model.head.in_features, 96)
        assert plugin.history[0]["left_because"]
    else:
        assert not model.norm_b.weight[2] and not model.c.weight[:, 2].any() and not model.fc.weight[4].any()
    assert all(entry["output_shift"] < 1e-5 for entry in plugin.history)


@MODES
def test_pickled_between_experiences_and_resumed(mode):
    experiences = list(stream().train_stream)

    def begin():
        torch.manual_seed(0)
        return naive(FixedHead(), [demon(mode, every=2)])

    def finish(strategy, from_):
        torch.manual_seed(5)
        for experience in experiences[from_:]:
            strategy.train(experience)
        return strategy

    strategy = begin()
    strategy.train(experiences[0])
    plugin = next(p for p in strategy.plugins if isinstance(p, DemonPruningPlugin))
    thawed = pickle.loads(pickle.dumps(plugin))
    loaded = DemonPruningPlugin(mode, every=2, **STRONG)
    loaded.load_state_dict(copy.deepcopy(plugin.state_dict()))
    model, optimizer = copy.deepcopy((strategy.model, strategy.optimizer))
    end = everything(finish(strategy, 1))
    for other in (thawed, loaded):
        network, state = copy.deepcopy((model, optimizer))
        again = naive(network, [other])
        again.optimizer = state
        again._optimizer = state
        again.clock.train_exp_counter = 1
        again.optimized_param_id = dict(network.named_parameters())
        assert same(everything(finish(again, 1)), end)
        assert other.history == plugin.history


@MODES
def test_a_network_that_starts_anew_begins_without_masks(mode):
    plugin = demon(mode)
    strategy = run([GDumbPlugin(12), plugin], FixedHead)
    assert len(plugin.history) == 6
    counts = [entry["dead"] for entry in plugin.history[::2]]
    assert all(count >= DEAD for count in counts)  # each network begins with dead units again
    assert [entry["pruned_fraction"] for entry in plugin.history[::2]] == pytest.approx([n / 30 for n in counts])
    assert len(strategy.model.features[0].weight) == (
        20 if mode == "mask" else 20 - len(plugin.history[-2]["units"]["features.0"])
    )


def test_groups_made_by_hand():
    groups = [UnitGroup("features.0", 20, "relu", at="features.1", consumers=[("features.3", 1)])]
    plugin = demon(groups=groups)
    run([plugin], FixedHead)
    assert list(plugin.history[0]["units"]) == ["features.0"]
    with pytest.raises(UserError, match="no groups made by hand"):
        demon("shrink", groups=groups)


def test_reports_reach_the_loggers():
    recorder, plugin = Recorder(), demon()
    run([plugin], loggers=[recorder])
    names = {value.name for value in recorder.values}
    for what in ("Dead", "Masked", "Removed", "PrunedFraction", "OutputShift"):
        assert f"DemonPruning{what}/train_phase/train_stream/Exp000" in names


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mode": "cut"}, "unknown mode 'cut'"),
        ({"total_steps": 0}, "total_steps"),
        ({"preset": "x"}, "unknown preset"),
        ({"lambda_": 1}, "no argument 'lambda_'"),
        ({"noise_std": -1}, "noise_std"),
        ({"every": 0}, "every"),
    ],
)
def test_nonsense_is_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        DemonPruningPlugin(**wrong)
    assert DemonPruningPlugin().mode == "mask"
