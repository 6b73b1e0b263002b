"""Dry runs and previews: they treat nothing, and say what would be treated, and why."""

import copy

import pytest
import torch
from exclusion_cases import MAKE, trained
from stripping_streams import FixedHead, MultiHead, Network, Recorder, Stripping, everything, naive, run, same, stream
from torch import nn

from benchmarks.comparison.measures import damage, treated_units
from plasticity import plugins
from plasticity.errors import UserError
from plasticity.preview import changed_parameters
from plasticity.probe import Probe
from strategies import Context, build_plugins

STEPS = ("L2InitPlugin", "L2Plugin", "NormalizeAndProjectPlugin", "SpectralRegularizationPlugin", "HareTortoisePlugin")
STEPWISE = ("ContinualBackpropPlugin", "SelfNormalizedResetsPlugin")
NO_UNITS = ("DASHPlugin", "FIREPlugin", "PlasticityInjectionPlugin", "ShrinkPerturbPlugin")
LOSS = nn.CrossEntropyLoss()


@pytest.fixture(scope="module")
def plain():
    strategy = trained(None, criterion=LOSS)
    return everything(strategy), torch.get_rng_state()


@pytest.mark.parametrize("name", list(MAKE))
def test_a_dry_run_is_the_run_without_the_plugin_and_reports_what_the_plugin_would_do(name, plain):
    tensors, random = plain
    plugin, acting = MAKE[name](dry_run=True), MAKE[name]()
    strategy = trained(plugin, criterion=LOSS)
    assert same(everything(strategy), tensors)
    assert torch.equal(torch.get_rng_state(), random)
    assert plugin.history and all(entry["dry_run"] is True for entry in plugin.history)
    if name.split(",")[0] in (*STEPS, *STEPWISE) or name.endswith("step"):
        assert sum(entry.get("steps", 0) + entry.get("recycled", 0) for entry in plugin.history) > 0
        return
    trained(acting, criterion=LOSS)
    # Up to the first treatment the two runs are the same; Demon pruning has pushed units before it.
    told = {key: value for key, value in plugin.history[0].items() if key not in ("dry_run", "reasons")}
    if not name.startswith("Demon"):
        assert told == acting.history[0]
    if name.split(",")[0] not in NO_UNITS:
        assert sum(map(len, told["units"].values())) > 0
        found = [
            (layer, unit)
            for layers in plugin.history[0]["reasons"].values()
            for layer, units in layers.items()
            for unit in units
        ]
        assert sorted(found) == sorted((layer, unit) for layer, units in told["units"].items() for unit in units)


@pytest.mark.parametrize("build", [Network, MultiHead])
def test_beside_heads_that_grow(build):
    """Networks are copied as they are at each time."""
    experiences = stream(task_labels=build is MultiHead)
    plain = everything(run([], build, experiences=experiences))
    for name in ("DemonPruningPlugin, shrink", "PlasticityInjectionPlugin", "ContinualBackpropPlugin", "ReDoPlugin"):
        plugin = MAKE[name](dry_run=True)
        assert same(everything(run([plugin], build, experiences=experiences)), plain), name
        assert plugin.history


def test_units_are_dead_for_the_reason_that_is_given():
    plugin, streams = plugins.SynapticStrippingPlugin(dry_run=True), stream().train_stream
    strategy = naive(FixedHead(), [plugin])
    strategy.train(streams[0])
    model = copy.deepcopy(strategy.model)
    strategy.train(streams[1])
    dead = Stripping.dead(model, Probe([(torch.stack([x for x, *_ in streams[0].dataset]),)]))
    (why,) = plugin.history[0]["reasons"]
    assert why == "dead: 0 on all 24 training samples"
    layers = {"features.0": "features.1", "features.3": "features.4"}
    found = plugin.history[0]["reasons"][why]
    assert dead and {(layers[layer], unit) for layer, units in found.items() for unit in units} == dead


def state(model, optimizer):
    return [*model.state_dict().values()], [
        each for held in optimizer.state.values() for each in held.values() if isinstance(each, torch.Tensor)
    ]


def small():
    """A network with two dead units and one that is nearly so, its optimizer after a step, and inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs = torch.rand(20, 3)
    model(inputs).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        model[0].weight.abs_(), model[0].bias.fill_(0.1), model[0].bias[[1, 4]].fill_(-10)
        model[0].bias[[1, 4]] = -10
        model[0].weight[2], model[0].bias[2] = 1e-4, 0
        model[2].weight.abs_(), model[2].bias.fill_(0.1)
    return model, optimizer, [inputs[:12], (inputs[12:],)]


def test_a_preview_as_it_is_printed():
    model, optimizer, batches = small()
    found = plugins.ReDoPlugin(exclude="4").preview(model, batches, optimizer)
    table, entries, counts = str(found).split("\n\n")
    assert table.splitlines() == [
        "redo would treat 3 of 5 units, judged on 20 training samples",
        "group  units  treated  why                                                   which",
        "0      5      2        dead: 0 on all 20 training samples                    1 4",
        "              1        dormant: mean magnitude at most 0.025 of its layer's  2",
        "2             -        left alone: `4`, which reads it, is excluded",
    ]
    assert [line.split()[0] for line in entries.splitlines()] == ["parameter", "0.weight", "0.bias", "2.weight"]
    assert entries.splitlines()[-1] == "2.weight   12 of 20"  # the columns of three units
    assert counts == f"dormant 3, dead 2, recycled 3, output shift {found.report.output_shift:.4g}"
    assert found.treated == 3 and 0 < found.report.output_shift < 1e-3

    whole = plugins.FIREPlugin(exclude=["0", "2"]).preview(model, batches, optimizer)
    assert str(whole).splitlines()[:4] == [
        "fire would write to 1 parameters; the shift of outputs is judged on 20 training samples",
        "",
        "parameter  entries that change",
        "4.weight   8 of 8",
    ]
    pulled = plugins.L2InitPlugin(exclude="0|2").preview(model)
    assert str(pulled).splitlines() == [
        "l2-init acts at every step; nothing is treated at once",
        "",
        "parameter  entries that change",
        "4.weight   8 of 8",
        "4.bias     2 of 2",
    ]
    judged = plugins.ContinualBackpropPlugin(exclude="0").preview(model, batches)
    assert str(judged).splitlines() == [
        "continual-backprop judges 4 units after every update; nothing is treated at once",
        "group  units  treated  why                                            which",
        "2      4      0",
        "0             -        left alone: `0`, which writes it, is excluded",
    ]


PREVIEWED = [name for name in MAKE if name.split(",")[0] not in (*STEPS, *STEPWISE, "DASHPlugin")]
PREVIEWED = [name for name in PREVIEWED if name not in ("GradientDormancyPlugin", "ShrinkPerturbPlugin, step")]


@pytest.mark.parametrize("name", PREVIEWED)
def test_a_preview_changes_nothing_and_foretells_the_treatment(name):
    model, optimizer, batches = small()
    plugin = MAKE[name]()
    before, plugins_state = copy.deepcopy(state(model, optimizer)), str(plugin.state_dict())
    found = plugin.preview(model, batches, optimizer)
    assert all(same(one, other) for one, other in zip(before, state(model, optimizer), strict=True))
    assert str(plugin.state_dict()) == plugins_state
    assert str(plugin.preview(model, batches, optimizer)) == str(found)

    old = copy.deepcopy(model)
    plugin.take_hold(model)
    if name.startswith("Adaptive"):
        plugin._between = True
    probe = Probe.joined([each if isinstance(each, tuple) else (each,) for each in batches])
    report = plugin.treat(
        model, plugin.units_of(model, probe.example), probe, optimizer, torch.Generator().manual_seed(0)
    )
    assert report == found.report
    assert changed_parameters(old, model) == found.parameters


def test_what_cannot_be_told_beforehand_is_said_in_words():
    model, optimizer, batches = small()
    with pytest.raises(UserError, match=r"train with DASHPlugin\(dry_run=True\)"):
        plugins.DASHPlugin().preview(model, batches, optimizer)
    with pytest.raises(UserError, match=r"train with GradientDormancyPlugin\(dry_run=True\)"):
        plugins.GradientDormancyPlugin().preview(model, batches, optimizer)
    with pytest.raises(UserError, match="no training mini-batch"):
        plugins.ReDoPlugin().preview(model, [], optimizer)
    with pytest.raises(UserError, match="no training mini-batch"):
        plugins.ContinualBackpropPlugin().preview(model, [])
    with pytest.raises(UserError, match="exclude leaves no hidden units"):
        plugins.ReDoPlugin(exclude=["0", "2"]).preview(model, batches)
    model[0].note = torch.ones(3, requires_grad=True) * 2  # part of a graph
    with pytest.raises(UserError, match="tried on a copy, and Sequential cannot be copied"):
        plugins.ReDoPlugin().preview(model, batches)


def test_loggers_are_told_under_a_name_of_its_own():
    recorder = Recorder()
    strategy = naive(FixedHead(), [plugins.ReDoPlugin(every=2, tau=0.5, dry_run=True)], loggers=[recorder])
    strategy.train(stream().train_stream[0])
    names = {value.name.partition("/")[0] for value in recorder.values}
    assert {"RedoRecycledDryRun", "RedoOutputShiftDryRun"} <= names
    assert not names & {"RedoRecycled", "RedoOutputShift"}


def test_by_name_and_in_comparisons():
    (redo,) = build_plugins("redo:every=2:dry_run=true:exclude=features.*", Context(FixedHead, 0, 1, 8, 2))
    assert redo.dry_run and redo.excluded.patterns == ("features.*",)
    for name in ("normalize-and-project", "plasticity-injection", "hare-tortoise", "fire"):
        (plugin,) = build_plugins(f"{name}:exclude=a|b*:dry_run=true", Context(FixedHead, 0, 1, 8, 2))
        assert plugin.excluded.patterns == ("a", "b*") and plugin.dry_run
    given, dry = {"units": {"a": 3}, "output_shift": 0.5}, {"units": {"a": 7}, "output_shift": 0.1, "dry_run": True}
    assert treated_units([given, dry], [20], True, False) == 3
    assert treated_units([dry], [20], True, False) == 0
    assert damage([given, dry])["output_shift"] == 0.5
