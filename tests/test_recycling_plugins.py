"""Plugins that make units new, in Avalanche strategies: what holds for all of them."""

import copy
import io
import pickle

import pytest
import torch
from avalanche.models import SlimResNet18
from avalanche.training.plugins import EWCPlugin, GDumbPlugin, GEMPlugin, LwFPlugin, ReplayPlugin, SupervisedPlugin
from stripping_streams import (
    FixedHead,
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

from plasticity import UnitGroup
from plasticity.errors import UserError
from plasticity.plugins import (
    ContinualBackpropPlugin,
    GradientDormancyPlugin,
    ReDoPlugin,
    SelfNormalizedResetsPlugin,
    SynapticStrippingPlugin,
)

PLUGINS = {
    "redo": ReDoPlugin,
    "continual-backprop": ContinualBackpropPlugin,
    "self-normalized-resets": SelfNormalizedResetsPlugin,
    "gradient-dormancy": GradientDormancyPlugin,
}
ACTIVE = {
    "redo": {"every": 3, "tau": 0.05},
    "continual-backprop": {"replacement_rate": 0.06, "maturity": 2, "transfer": True},
    "self-normalized-resets": {"maximum_age": 24, "refresh": 4, "enough": 2, "check_every": 2, "maximum_share": 0.2},
    "gradient-dormancy": {"every": 3, "tau": 0.05, "batches": 2},
}
IDLE = {
    "redo": {"every": 3, "maximum_share": 0},
    "continual-backprop": {"replacement_rate": 0},
    "self-normalized-resets": {"maximum_age": 8, "maximum_share": 0, "check_every": 1},
    "gradient-dormancy": {"every": 3, "maximum_share": 0},
}


@pytest.fixture(params=PLUGINS)
def method(request):
    return request.param


def make(method, **changes):
    return PLUGINS[method](**{**ACTIVE[method], **changes})


def treated(plugin):
    return sum(len(numbers) for entry in plugin.history for numbers in entry["units"].values())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_strength_0_is_bit_identical_to_no_plugin(method, optimizer):
    plugin = PLUGINS[method](**IDLE[method])
    idle = everything(run([plugin], optimizer=optimizer, eval_every=1))
    state = torch.get_rng_state()
    without = everything(run([], optimizer=optimizer, eval_every=1))
    assert same(idle, without)
    assert torch.equal(torch.get_rng_state(), state)
    assert plugin.history
    assert treated(plugin) == 0


def test_the_same_seed_gives_the_same_run_and_another_seed_another(method):
    runs = {}
    for name, seed in ("one", 0), ("two", 0), ("other", 1):
        plugin = make(method, seed=seed)
        runs[name] = everything(run([plugin], FixedHead)), plugin.history
    assert same(runs["one"][0], runs["two"][0])
    assert runs["one"][1] == runs["two"][1]
    assert not same(runs["one"][0], runs["other"][0])


def test_evaluations_and_passes_of_other_plugins_in_between_do_not_count(method):
    histories = []
    for evaluate, settings in (False, {}), (True, {}), (True, {"eval_every": 1}):
        plugin = make(method)
        strategy = run([plugin], FixedHead, evaluate=evaluate, shuffle=False, **settings)
        histories.append((everything(strategy), plugin.history))
    for other in histories[1:]:
        assert same(other[0], histories[0][0])
        assert other[1] == histories[0][1]
    for others in [EWCPlugin(1e-8)], [LwFPlugin(0.0)], [GEMPlugin(8, 0.5)]:
        plugin = make(method)
        run([plugin, *others], FixedHead)
        assert treated(plugin) > 0


def test_growing_and_several_heads_and_replay_and_a_model_that_starts_anew(method):
    for model, task_labels, others in (
        (Network, False, [ReplayPlugin(mem_size=12)]),
        (MultiHead, True, []),
        (MultiHead, True, [ReplayPlugin(mem_size=12)]),
        (Network, False, [GDumbPlugin(mem_size=18)]),
    ):
        plugin = make(method)
        strategy = run([plugin, *others], model, stream(task_labels=task_labels), eval_every=0)
        assert treated(plugin) > 0
        assert plugin.history[0]["method"] == method
        assert {entry["experience"] for entry in plugin.history} == {0, 1, 2}
        assert all(torch.isfinite(parameter).all() for parameter in strategy.model.parameters())
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in strategy.model.modules()]
        hooks += ["_compiled_call_impl" in vars(m) for m in strategy.model.modules()]
        assert sum(hooks) == 0


class RemovedIsZero(SupervisedPlugin):
    """Looks before every forward pass whether removed weights are exactly 0."""

    def __init__(self, stripping):
        super().__init__()
        self.stripping, self.checks = stripping, 0

    def before_forward(self, strategy, **kwargs):
        for name in self.stripping.masks:
            weight = strategy.model.get_submodule(name).weight
            assert (weight[~self.stripping.masks.kept(strategy.model, name)] == 0).all()
            self.checks += 1


@pytest.mark.parametrize("last", [True, False])
def test_removed_connections_stay_removed_beside_another_plugin(method, last):
    plugin, stripping = make(method), SynapticStrippingPlugin("whitaker2023")
    check = RemovedIsZero(stripping)
    both = [stripping, plugin] if last else [plugin, stripping]
    run([*both, check], FixedHead)
    assert treated(plugin) > 0
    assert stripping.masks.removed() > 0
    assert check.checks > 0


def test_groups_that_are_watched_only_are_skipped_and_listed_once_with_the_reason(method):
    def model():
        network = SlimResNet18(4, nf=4)
        with torch.no_grad():
            network.layer1[0].bn1.bias[:2] = -20
            network.bn1.bias[0] = -20
        return network

    plugin = make(method)
    run([plugin], model, stream(2, size=16, shape=(3, 32, 32)), train_epochs=2)
    skipped = plugin.history[0]["skipped"]
    assert "layer1.0.conv2" in skipped["conv1"]
    assert "layer1.0.conv1" not in skipped
    assert all("skipped" not in entry for entry in plugin.history[1:])
    names = {name for entry in plugin.history for name, numbers in entry["units"].items() if numbers}
    assert "layer1.0.conv1" in names
    assert not names & set(skipped)


def test_a_model_without_private_units_is_refused(method):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.write, self.read = nn.Linear(8, 8), nn.Linear(8, 6)

        def forward(self, x):
            return self.read(torch.relu(self.write(x)) @ torch.ones(8, 8))

    with pytest.raises(UserError, match="'write'") as error:
        run([make(method)], Mixed)
    assert "\n" not in str(error.value)


def test_groups_declared_by_hand(method):
    groups = [UnitGroup("features.0", size=20, activation="relu", at="features.1", consumers=[("features.3", 1)])]
    plugin = make(method, groups=groups)
    run([plugin], FixedHead)
    assert treated(plugin) > 0
    assert {name for entry in plugin.history for name in entry["units"]} == {"features.0"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"preset": "none"}, "preset"), ({"tua": 1}, "tua"), ({"moments": "half"}, "moments")],
    ids=str,
)
def test_bad_arguments_are_refused_in_one_line(method, arguments, word):
    with pytest.raises(UserError, match=word) as error:
        PLUGINS[method](**arguments)
    assert "\n" not in str(error.value)
    PLUGINS[method]()


def test_loggers_get_the_counts(method):
    logger, plugin = Recorder(), make(method)
    run([plugin], loggers=[logger])
    title = "".join(part.capitalize() for part in method.split("-"))
    told = [value for value in logger.values if value.name.startswith(f"{title}Recycled/")]
    assert [value.value for value in told] == [float(entry["recycled"]) for entry in plugin.history]
    assert all(type(value.value) is float for value in told)


def through_file(method, plugin):
    buffer = io.BytesIO()
    torch.save(plugin.state_dict(), buffer)
    buffer.seek(0)
    other = make(method)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_a_plugin_restored_between_experiences_goes_on_bit_identically(method, way):
    copied = {"state_dict": through_file, "pickle": lambda m, p: pickle.loads(pickle.dumps(p))}
    results = []
    for restored in False, True:
        torch.manual_seed(0)
        plugin = make(method)
        strategy = naive(Network(), [plugin])
        for experience in stream().train_stream:
            if restored:
                plugin = copied.get(way, lambda m, p: copy.deepcopy(p))(method, plugin)
                strategy.plugins[0] = plugin
            strategy.train(experience)
        results.append((everything(strategy), plugin.history, plugin.state_dict()))
    (one, history, state), (other, other_history, other_state) = results
    assert same(one, other)
    assert history == other_history
    assert str(state) == str(other_state)
    assert treated(plugin) > 0


@pytest.mark.parametrize("every", [3, 5, "epoch", "experience"])
def test_gradients_are_collected_in_the_latest_mini_batches_alone(every):
    plugin = make("gradient-dormancy", every=every, batches=2)
    run([plugin])
    assert len(plugin.history) >= 2
    assert {entry["samples"] for entry in plugin.history} == {16}


def test_what_is_known_of_units_is_forgotten_with_their_model():
    plugins = [make("continual-backprop"), make("self-normalized-resets")]
    run([*plugins, GDumbPlugin(mem_size=18)])
    starts = [plugin.history[-2]["iteration"] for plugin in plugins]
    for plugin, start in zip(plugins, starts, strict=True):
        state = plugin.state_dict()
        units = state["units"] if "units" in state else state["ages"]["units"]
        assert {known["updates"] for known in units.values()} == {plugin.history[-1]["iteration"] - start}
    kept = make("continual-backprop")
    run([kept], FixedHead)
    assert {known["updates"] for known in kept.state_dict()["units"].values()} == {kept.history[-1]["iteration"]}
