"""The stripping plugin in Avalanche strategies, from end to end."""

import copy
import io
import pickle

import dill
import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.models import SlimResNet18
from avalanche.training.plugins import EWCPlugin, GDumbPlugin, GEMPlugin, LwFPlugin, ReplayPlugin
from stripping_streams import (
    DEAD,
    OPTIMIZERS,
    SIZE,
    FixedHead,
    MasksHold,
    MultiHead,
    Network,
    Recorder,
    SeenSamples,
    Stripping,
    everything,
    naive,
    run,
    same,
    stream,
)
from torch import nn

from plasticity.errors import UserError
from plasticity.plugins import SynapticStrippingPlugin

# When and what


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [(1, 6), (2, 12)]),
        ({"every": "epoch"}, [(0, 3), (0, 6), (1, 9), (1, 12), (2, 15), (2, 18)]),
        ({"preset": "whitaker2023"}, [(0, 3), (0, 6), (1, 9), (1, 12), (2, 15), (2, 18)]),
        ({"preset": "whitaker2023", "every": "experience"}, [(1, 6), (2, 12)]),
        ({"every": 4}, [(0, 4), (1, 8), (1, 12), (2, 16)]),
    ],
    ids=str,
)
def test_when_it_acts_and_that_it_counts_right(arguments, expected):
    plugin = Stripping(**arguments)
    run([plugin, MasksHold(plugin)])
    assert [(entry["experience"], entry["iteration"]) for entry in plugin.history] == expected
    for entry, recount in zip(plugin.history, plugin.recounts, strict=True):
        assert {name: entry[name] for name in recount} == recount
        assert entry["stripped"] <= sum(len(numbers) for numbers in entry["units"].values())
        assert entry["method"] == "synaptic-stripping"
    first = plugin.history[0]
    assert first["dead"] >= DEAD
    if arguments.get("preset"):
        assert first["stripped"] == first["dead"]
        assert first["rounds"] == 1
    else:
        assert first["still_dead"] == 0
        assert first["units"]["features.0"] == list(range(DEAD))
        assert first["output_shift"] > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("arguments", [{}, {"every": "epoch"}, {"preset": "whitaker2023"}, {"every": 5}], ids=str)
def test_removed_connections_stay_zero_through_momentum_and_weight_decay(arguments, optimizer):
    plugin = SynapticStrippingPlugin(**arguments)
    check = MasksHold(plugin)
    run([plugin, check], optimizer=optimizer)
    assert plugin.masks.removed() == sum(entry["connections"] for entry in plugin.history) > 0
    assert check.checks > 0


# A plugin that does nothing is not there


@pytest.mark.parametrize("every", ["experience", "epoch", 3])
@pytest.mark.parametrize("case", ["nothing dead", "fraction", "rounds"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_strips_nothing_is_bit_identical_to_one_without_the_plugin(optimizer, case, every):
    plugin = SynapticStrippingPlugin(every=every, **{case: 0} if case != "nothing dead" else {})

    def model():
        return Network(dead=case != "nothing dead")

    with_plugin = everything(run([plugin], model, optimizer=optimizer, eval_every=1))
    state = torch.get_rng_state()
    without = everything(run([], model, optimizer=optimizer, eval_every=1))
    assert same(with_plugin, without)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(plugin.history) > 0
    assert all((entry["dead"] == 0) == (case == "nothing dead") for entry in plugin.history)
    assert len(plugin.masks) == 0


def test_evaluations_in_between_change_nothing():
    runs = []
    for evaluate, settings in (False, {}), (True, {}), (True, {"eval_every": 0}), (False, {"eval_every": 1}):
        plugin = Stripping(every=3)
        strategy = run([plugin], FixedHead, evaluate=evaluate, shuffle=False, **settings)  # draws no random number
        runs.append((everything(strategy), plugin.history, plugin.probes))
    for other in runs[1:]:
        assert same(other[0], runs[0][0])
        assert other[1:] == runs[0][1:]


# The probe


PLUGINS = {
    "alone": lambda: [],
    "GEM": lambda: [GEMPlugin(8, 0.5)],
    "EWC": lambda: [EWCPlugin(1.0)],
    "LwF": lambda: [LwFPlugin()],
}


@pytest.mark.parametrize("others", PLUGINS)
@pytest.mark.parametrize(("limit", "every"), [(2048, "epoch"), (2048, "experience"), (10, "epoch"), (10, 2), (1, 1)])
def test_units_are_judged_on_the_latest_training_samples_alone(limit, every, others):
    plugin = Stripping(every=every, probe_samples=limit)
    seen, latest = SeenSamples(), []
    run([seen, plugin, *PLUGINS[others]()], evaluate=True)
    for entry, probe in zip(plugin.history, plugin.probes, strict=True):
        latest = seen.numbers[: 8 * entry["iteration"]][-min(limit, SIZE) :]
        assert probe == latest
        assert entry["samples"] == len(probe) == min(limit, SIZE, 8 * entry["iteration"])
        assert len(set(probe)) == len(probe) or every == 2  # no sample twice, but for the end of one epoch and the next
        assert min(probe) > 0


@pytest.mark.parametrize("boundaries", [True, False])
def test_an_online_stream_is_judged_on_more_than_one_mini_batch(boundaries):
    """Between its experiences if it tells where they are, else every few iterations."""
    benchmark = stream()
    online = split_online_stream(benchmark.train_stream, experience_size=6, access_task_boundaries=boundaries)
    plugin = Stripping(probe_samples=30, every="experience" if boundaries else 3)
    run([plugin, MasksHold(plugin)], FixedHead, experiences=online, train_mb_size=6, train_epochs=1)
    samples = [entry["samples"] for entry in plugin.history]
    assert samples == ([24, 30] if boundaries else [18, 30, 30, 30])
    assert all(number > 0 for probe in plugin.probes for number in probe)
    assert plugin.history[0]["still_dead"] == 0


# Other models and strategies


def test_growing_and_several_heads_and_replay():
    for model, task_labels, others in (
        (Network, False, []),
        (Network, False, [ReplayPlugin(mem_size=12)]),
        (MultiHead, True, []),
        (MultiHead, True, [ReplayPlugin(mem_size=12)]),
    ):
        plugin = Stripping(every="epoch", probe_samples=40)
        strategy = run([plugin, MasksHold(plugin), *others], model, stream(task_labels=task_labels), eval_every=0)
        assert plugin.history[0]["revived"] >= DEAD
        for entry, recount in zip(plugin.history, plugin.recounts, strict=True):
            assert {name: entry[name] for name in recount} == recount
        assert plugin.masks.removed() > 0
        assert all(number > 0 for probe in plugin.probes for number in probe)
        assert strategy.model.classifier is not None


def test_a_model_that_starts_anew_is_not_masked_as_the_one_before():
    plugin = Stripping(every="epoch")
    strategy = run([plugin, MasksHold(plugin), GDumbPlugin(mem_size=18)])
    last = [entry for entry in plugin.history if entry["experience"] == 2]
    assert last[0]["dead"] >= DEAD  # the same untrained network, with its dead units
    assert plugin.masks.removed() == sum(entry["connections"] for entry in last) > 0
    assert plugin.masks.removed() == plugin.zeros(strategy.model)
    assert all(entry["samples"] <= 18 for entry in plugin.history)  # GDumb trains on its memory


def test_functional_activations_and_normalisers():
    def model():
        network = SlimResNet18(4, nf=4)
        with torch.no_grad():
            network.layer1[0].bn1.bias[:2] = -20
            network.layer2[0].bn1.bias[1] = -20
        return network

    plugin = SynapticStrippingPlugin(every="epoch", rounds=2)
    strategy = run([plugin], model, stream(2, size=8, shape=(3, 32, 32)), train_epochs=1)
    first = plugin.history[0]
    assert first["dead"] >= first["revived"] >= 3
    assert {0, 1} <= set(first["units"]["layer1.0.conv1"])
    assert 1 in first["units"]["layer2.0.conv1"]
    assert (strategy.model.layer1[0].bn1.bias[:2] > -1).all()


def test_a_model_without_hidden_units_is_refused_at_the_first_mini_batch():
    plugin = SynapticStrippingPlugin()
    with pytest.raises(UserError, match=r"SynapticStrippingPlugin.*Linear.* no hidden units") as error:
        run([plugin], lambda: nn.Linear(8, 6))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"preset": "whitaker"},
        {"every": "day"},
        {"every": 0},
        {"every": -3},
        {"every": 2.5},
        {"every": True},
        {"probe_samples": 0},
        {"probe_samples": 3.5},
        {"fraction": 7},
        {"rounds": -1},
        {"score": "magnitude"},
        {"fallback": "hope"},
        {"fractoin": 0.1},
    ],
    ids=str,
)
def test_bad_arguments_are_refused_in_one_line(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))) as error:
        SynapticStrippingPlugin(**arguments)
    assert "\n" not in str(error.value)


# Reports


def test_loggers_get_plain_numbers_under_names_of_their_own():
    logger, plugin = Recorder(), SynapticStrippingPlugin(every="epoch")
    run([plugin], loggers=[logger])
    values = [value for value in logger.values if value.name.startswith("SynapticStripping")]
    measures = set(plugin.history[0]) - {"experience", "iteration", "method", "samples", "units"}
    assert len(values) == len(plugin.history) * len(measures)
    for number, entry in enumerate(plugin.history):
        told = values[number * len(measures) : (number + 1) * len(measures)]
        for value in told:
            assert type(value.value) is float
            assert value.x_plot == entry["iteration"]
        names = {
            f"SynapticStripping{''.join(part.capitalize() for part in name.split('_'))}"
            f"/train_phase/train_stream/Exp00{entry['experience']}": float(entry[name])
            for name in measures
        }
        assert {value.name: value.value for value in told} == names


# Saving and going on


def through_file(plugin):
    buffer = io.BytesIO()
    torch.save(plugin.state_dict(), buffer)
    buffer.seek(0)
    other = SynapticStrippingPlugin(
        every=plugin.every, fallback=plugin.rule.fallback, max_row_sparsity=0.5, probe_samples=21
    )
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


@pytest.mark.parametrize("every", ["experience", "epoch", 4])
@pytest.mark.parametrize("fallback", ["zero_bias", "reinitialise"])
@pytest.mark.parametrize(
    "copied",
    [through_file, lambda p: pickle.loads(pickle.dumps(p)), lambda p: dill.loads(dill.dumps(p)), copy.deepcopy],
    ids=["state_dict", "pickle", "dill", "deepcopy"],
)
def test_a_plugin_restored_between_experiences_goes_on_bit_identically(copied, fallback, every):
    results = []
    for restored in False, True:
        torch.manual_seed(0)
        plugin = SynapticStrippingPlugin(every=every, fallback=fallback, max_row_sparsity=0.5, probe_samples=21)
        strategy = naive(Network(), [plugin])
        for experience in stream().train_stream:
            if restored:
                plugin = copied(plugin)
                strategy.plugins[0] = plugin
            strategy.train(experience)
            with torch.no_grad():  # more to do
                strategy.model.features[0].bias[5:12] = -20
        results.append((everything(strategy), plugin.history, plugin.state_dict()))
    (one, history, state), (other, other_history, other_state) = results
    assert same(one, other)
    assert history == other_history
    assert str(state) == str(other_state)
    assert sum(entry["fallback"] for entry in history) > 0
    drawn = not torch.equal(state["generator"], SynapticStrippingPlugin().state_dict()["generator"])
    assert drawn == (fallback == "reinitialise")
    assert state["masks"]


def test_saved_state_is_a_copy():
    plugin = SynapticStrippingPlugin(every=2)
    strategy = run([plugin])
    state = plugin.state_dict()
    frozen = copy.deepcopy(state)
    strategy.train(stream().train_stream[0])
    assert str(state) == str(frozen)
    assert plugin.state_dict()["iterations"] > state["iterations"]
