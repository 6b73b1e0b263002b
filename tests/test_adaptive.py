"""The controller: what it sees, which treatment it chooses, and that it does nothing where nothing is needed."""

import copy
import io
import math
import pickle

import pytest
import torch
from avalanche.training.plugins import GDumbPlugin, ReplayPlugin, SupervisedPlugin
from recycling_cases import CASES, OPTIMIZERS, Case
from stripping_streams import FixedHead, MultiHead, Network, everything, naive, run, same, stream
from torch import nn

from plasticity.errors import UserError
from plasticity.methods.adaptive import AdaptiveRule, LearningRecord, treat_as_needed
from plasticity.methods.parameters import InitialValues
from plasticity.plugins import AdaptivePlugin, SynapticStrippingPlugin
from plasticity.probe import Probe


def treat(case, strongest=1, entries=(), initial=None, **rule):
    probe = Probe([(case.x[:25],), (case.x[25:],)])
    generator = torch.Generator().manual_seed(0)
    initial = case.initial if initial is None else initial
    return treat_as_needed(
        case.model, case.units, probe, AdaptiveRule(**rule), strongest, case.optimizer, generator, initial, entries
    )


def scores_by_hand(case):
    """Mean magnitude of each unit over samples and positions, over the mean of the layer."""
    case.model.eval()
    columns = case.activations().double().abs().T.tolist()
    case.model.train()
    means = [sum(column) / len(column) for column in columns]
    return [mean / (sum(means) / len(means)) for mean in means]


# --- the treatments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_the_first_makes_dead_units_new_and_leaves_the_outputs_alone(name, optimizer, monkeypatch):
    case = Case(name, optimizer)
    case.kill([0, 2])
    case.weaken(3)
    dead = [unit for unit, score in enumerate(scores_by_hand(case)) if score == 0]
    assert {0, 2} <= set(dead)
    case.model.eval()
    before = case.model(case.x)
    report = treat(case, dead=0.1)
    assert torch.equal(case.model(case.x), before)
    assert report.units == {case.group.name: dead} and report.output_shift == 0
    assert report.counts["dead"] == report.counts["treated"] == len(dead) and report.counts["treatment"] == 1
    case.check_renewed(dead, monkeypatch)


@pytest.mark.parametrize(("dead", "treated"), [(0.0, True), (0.25, True), (0.26, False), (1.0, False)])
def test_a_layer_with_fewer_dead_units_is_left_alone(dead, treated, monkeypatch):
    case = Case("linear")
    case.kill([1, 4])  # 2 of 8
    report = treat(case, dead=dead)
    assert report.units == ({"0": [1, 4]} if treated else {})
    assert (report.counts["treatment"], report.counts["dead"]) == (int(treated), 2)
    case.check_renewed([1, 4] if treated else [], monkeypatch)


def test_a_layer_without_dead_units_is_left_alone_at_a_bound_of_0(monkeypatch):
    case = Case("linear")
    with torch.no_grad():
        case.model[0].bias.fill_(5)
    case.remember()
    assert treat(case, dead=0.0).counts["treatment"] == 0
    case.check_renewed([], monkeypatch)


@pytest.mark.parametrize("name", CASES)
def test_the_second_makes_dormant_units_new(name, monkeypatch):
    case = Case(name)
    case.kill([1])
    case.weaken(3)
    dormant = [unit for unit, score in enumerate(scores_by_hand(case)) if score <= 0.05]
    assert {1, 3} <= set(dormant)
    report = treat(case, strongest=2, tau=0.05, dead=1.0)
    assert report.units == {case.group.name: dormant}
    assert report.counts["treatment"] == 2 and report.output_shift > 0
    case.check_renewed(dormant, monkeypatch)


def test_the_third_goes_back_towards_the_initial_values_and_starts_the_optimizer_anew():
    case = Case("flatten")
    values = InitialValues()
    entries = values.update(case.model)
    first = {name: value.clone() for name, value in values.items()}
    for _ in range(3):
        case.update()
    before = {name: parameter.detach().clone() for name, parameter in case.model.named_parameters()}
    case.units = case.all_units
    report = treat(case, 3, entries, values, strength=0.75)
    for name, parameter in case.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), 0.25 * before[name] + 0.75 * first[name])
    assert not case.optimizer.state
    assert report.units == {group.name: list(range(group.size)) for group in case.all_units}
    assert report.counts["treated"] == sum(group.size for group in case.all_units)


@pytest.mark.parametrize(("growth", "treatment"), [(None, 0), (1.01, 0), (0.99, 3), ("inside", 0)])
def test_the_third_is_given_to_weights_that_have_grown_long(growth, treatment):
    case = Case("linear")
    values = InitialValues()
    entries = values.update(case.model)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(3)
    squares = [(sum(float((v**2).sum()) for v in some)) for some in (case.model.parameters(), values.values())]
    by_hand = (squares[0] / squares[1]) ** 0.5
    rule = {"dead": 1.0, "growth": by_hand * growth if isinstance(growth, float) else growth}
    if growth == "inside":  # an experience, where nothing but dead units is looked at
        entries, rule["growth"] = [], 1.0
    report = treat(case, 1, entries, values, **rule)
    assert report.counts["treatment"] == treatment
    assert report.counts["growth"] == pytest.approx(1.0 if growth == "inside" else by_hand)


@pytest.mark.parametrize(
    "rule",
    [{"growth": 0.9}, {"dead": 1.1}, {"fall": -0.1}, {"tau": 2}, {"strength": 1.5}, {"moments": "half"}],
    ids=str,
)
def test_rules_without_meaning_are_refused(rule):
    with pytest.raises(UserError, match=next(iter(rule))):
        AdaptiveRule(**rule)


# --- the learning record -------------------------------------------------------------------------------------------


def fallen_by_hand(values, fall):
    """Judge each accuracy by the healthy ones before it."""
    healthy, found = [], []
    for value in values:
        mean = sum(healthy) / len(healthy) if healthy else 0
        variance = sum((x - mean) ** 2 for x in healthy) / (len(healthy) - 1) if len(healthy) > 1 else 0
        found.append(len(healthy) >= 3 and (value <= mean - max(fall, 2 * variance**0.5) or value != value))
        if not found[-1] and value == value:
            healthy.append(value)
    return found


@pytest.mark.parametrize("fall", [0.0, 0.05, 0.2])
def test_an_experience_falls_behind_the_healthy_ones_before_it(fall):
    generator = torch.Generator().manual_seed(0)
    some = False
    for _ in range(50):
        values = (0.8 + 0.1 * torch.randn(20, generator=generator)).clamp(0, 1).tolist()
        values[10:12] = [0.3, 0.35]
        record = LearningRecord(fall)
        found = [record.add(5, value) for value in values]
        assert found == fallen_by_hand(values, fall)
        some = some or any(found)
    assert some


def test_experiences_are_compared_with_those_of_as_many_classes():
    record = LearningRecord(0.05)
    for _ in range(4):
        assert not record.add(1, 1.0)
        assert not record.add(5, 0.6)
    assert not record.add(5, 0.58)
    assert record.add(1, 0.6)


def test_a_bound_of_1_never_finds_a_fall_and_nan_is_one():
    never, usual = LearningRecord(1.0), LearningRecord(0.05)
    for _ in range(5):
        assert not never.add(2, 1.0) and not usual.add(2, 1.0)
    assert not never.add(2, 0.0)
    assert usual.add(2, math.nan)
    assert usual.add(2, 0.5)


def test_few_experiences_are_not_enough_to_fall_behind():
    record = LearningRecord(0.0)
    assert not any(record.add(2, accuracy) for accuracy in (0.9, 0.8, 0.1))


# --- in a strategy -------------------------------------------------------------------------------------------------


class Told(AdaptivePlugin):
    """Is told how well each experience was learned."""

    def __init__(self, accuracies, **settings):
        super().__init__(**{"growth": None, **settings})
        self.accuracies = list(accuracies)

    def _judge(self):
        accuracy = self.accuracies.pop(0)
        self._right, self._judged = torch.tensor(accuracy * 1000), 1000
        super()._judge()


def treatments(plugin):
    return [(entry["experience"], entry["treatment"]) for entry in plugin.history]


def test_treatments_grow_stronger_while_learning_stays_behind_and_begin_anew():
    falls = [0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    plugin = Told(falls, dead=1.0)
    run([plugin], Network, stream(10), train_epochs=1)
    found = dict(treatments(plugin))
    assert [found[experience] for experience in range(1, 10)] == [0, 0, 0, 2, 3, 0, 0, 0, 0]
    plugin = Told([0.9, 0.9, 0.9, 0.5, 0.9, 0.5, 0.9, 0.9, 0.9], dead=1.0)
    run([plugin], Network, stream(10), train_epochs=1)
    assert [treatment for _, treatment in treatments(plugin)] == [0, 0, 0, 2, 0, 2, 0, 0, 0]


class Killing(SupervisedPlugin):
    """Makes a unit dead before every pass, and before every experience."""

    def before_forward(self, strategy, **kwargs):
        strategy.model.features[0].bias.data[0] = -20

    before_training_exp = before_forward


@pytest.mark.parametrize("every", ["epoch", 2])
def test_within_an_experience_only_dead_units_are_made_new(every):
    """However far learning has fallen behind: dormant units and whole weights wait for the next experience."""
    plugin = Told([0.9, 0.9, 0.9, 0.5, 0.5, 0.5], dead=0.01, every=every)
    run([Killing(), plugin], Network, stream(6), train_epochs=2)
    between = [entry for entry in plugin.history if "accuracy" in entry]
    within = [entry for entry in plugin.history if "accuracy" not in entry]
    assert [entry["treatment"] for entry in between][3:5] == [2, 3]
    assert {entry["treatment"] for entry in within if entry["experience"] in (4, 5)} == {1}


class Accuracy(SupervisedPlugin):
    """Counts by itself what was right before each update."""

    def __init__(self):
        super().__init__()
        self.found, self.right = {}, []

    def after_forward(self, strategy, **kwargs):
        guesses = strategy.mb_output.argmax(1)
        self.right += (guesses == strategy.mb_y).tolist()

    def after_training_exp(self, strategy, **kwargs):
        self.found[strategy.experience.current_experience] = sum(self.right) / len(self.right)
        self.right = []


def test_the_accuracy_of_an_experience_is_that_before_each_update():
    plugin, accuracy = AdaptivePlugin(), Accuracy()
    run([plugin, accuracy], Network, stream(4))
    told = {entry["experience"] - 1: entry["accuracy"] for entry in plugin.history}
    assert told == pytest.approx({key: accuracy.found[key] for key in (0, 1, 2)})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_where_nothing_is_needed_the_run_is_bit_identical_to_one_without(optimizer):
    plugin = AdaptivePlugin(dead=1.0, fall=1.0, growth=None, every=3)
    idle = everything(run([plugin], optimizer=optimizer, eval_every=1))
    assert same(idle, everything(run([], optimizer=optimizer, eval_every=1)))
    assert treatments(plugin) == [(1, 0), (2, 0)]


@pytest.mark.parametrize("every", ["experience", "epoch", 2])
def test_dead_units_are_looked_for_between_experiences_and_more_often_if_asked(every):
    plugin = AdaptivePlugin(dead=0.1, every=every)
    run([plugin], FixedHead)
    found = treatments(plugin)
    assert ((0, 1) in found) == (every != "experience")  # the network begins with dead units
    assert [experience for experience, _ in found if experience] and {1, 2} <= {experience for experience, _ in found}


def test_the_same_seed_gives_the_same_run_and_another_another():
    runs = [everything(run([AdaptivePlugin(dead=0.1, seed=seed)], FixedHead)) for seed in (0, 0, 1)]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_growing_and_several_heads_and_replay_and_a_model_that_starts_anew():
    for model, task_labels, others in (
        (Network, False, [ReplayPlugin(mem_size=12)]),
        (MultiHead, True, []),
        (Network, False, [GDumbPlugin(mem_size=18)]),
    ):
        plugin = Told([0.9, 0.9, 0.9, 0.1, 0.1], dead=0.1)
        strategy = run([plugin, *others], model, stream(6, task_labels=task_labels), eval_every=0)
        assert {2, 3} <= {treatment for _, treatment in treatments(plugin)}
        assert all(torch.isfinite(parameter).all() for parameter in strategy.model.parameters())


@pytest.mark.parametrize("last", [True, False])
def test_removed_connections_stay_removed(last):
    plugin, stripping = Told([0.9, 0.9, 0.9, 0.1, 0.1], dead=0.0), SynapticStrippingPlugin("whitaker2023")
    strategy = run([stripping, plugin] if last else [plugin, stripping], Network, stream(6))
    assert {2, 3} <= {treatment for _, treatment in treatments(plugin)}
    assert stripping.masks.removed() > 0
    for name in stripping.masks:
        weight = strategy.model.get_submodule(name).weight
        assert (weight[~stripping.masks.kept(strategy.model, name)] == 0).all()


def through_file(plugin):
    buffer = io.BytesIO()
    torch.save(plugin.state_dict(), buffer)
    buffer.seek(0)
    other = AdaptivePlugin(dead=0.1, fall=0.0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


@pytest.mark.parametrize("way", [through_file, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_plugin_restored_between_experiences_goes_on_bit_identically(way):
    results = []
    for restored in False, True:
        torch.manual_seed(0)
        plugin = AdaptivePlugin(dead=0.1, fall=0.0)
        plugin.record.load_state_dict({"2": [1.0, 1.0, 1.0]})  # what comes has fallen behind
        strategy = naive(Network(), [plugin])
        for experience in stream(7).train_stream:
            if restored:
                plugin = way(plugin)
                strategy.plugins[0] = plugin
            strategy.train(experience)
        results.append((everything(strategy), plugin.history, str(plugin.state_dict())))
    assert same(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]
    assert any(treatment > 1 for _, treatment in treatments(plugin))


def test_a_regression_is_judged_by_its_dead_units_alone():
    plugin = AdaptivePlugin(dead=0.1)
    strategy = naive(FixedHead(), [plugin])
    strategy._criterion = lambda outputs, labels: 0.1 * (outputs.sum(1).squeeze(1) - labels).square().mean()
    strategy.model = nn.Sequential(strategy.model, nn.Linear(6, 3), nn.Unflatten(1, (3, 1)))
    for experience in stream().train_stream:
        strategy.train(experience)
    assert "accuracy" not in plugin.history[-1] and any(treatment for _, treatment in treatments(plugin))


def test_bad_arguments_are_refused_in_one_line():
    for arguments, word in ({"daed": 1}, "daed"), ({"every": "week"}, "every"), ({"tau": -1}, "tau"):
        with pytest.raises(UserError, match=word) as error:
            AdaptivePlugin(**arguments)
        assert "\n" not in str(error.value)
