"""Networks with NaN or infinite values: nothing is treated, and it is said."""

import copy
import math
import warnings

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from exclusion_cases import EXPERIENCES, MAKE, flat
from stripping_streams import FixedHead, Recorder, everything
from torch import nn

from plasticity import find_units, measures, plugins, watch
from plasticity.errors import UserError
from plasticity.finiteness import CheckedProbe, NonFiniteError, all_finite, nonfinite_activity, nonfinite_weights
from plasticity.methods.continual_backprop import ContinualBackprop, ContinualBackpropRule
from plasticity.methods.latest_activity import BatchSums
from plasticity.methods.recycling import initial_values
from plasticity.methods.self_normalized_resets import SelfNormalizedResets, SelfNormalizedResetsRule
from plasticity.metrics import plasticity_metrics
from plasticity.plugins.stepwise import StepwisePlugin

WRONG = [math.nan, math.inf, -math.inf]
AT_STEPS = [
    "ContinualBackpropPlugin",
    "HareTortoisePlugin",
    "L2InitPlugin",
    "L2Plugin",
    "NormalizeAndProjectPlugin",
    "SelfNormalizedResetsPlugin",
    "ShrinkPerturbPlugin, step",
    "SpectralRegularizationPlugin",
]
AT_TIMES = [name for name in MAKE if name not in AT_STEPS]
QUIET = {"DemonPruningPlugin": lambda **more: plugins.DemonPruningPlugin(regularisation=0.1, noise_std=0.0, **more)}
QUIET["DemonPruningPlugin, shrink"] = lambda **more: QUIET["DemonPruningPlugin"](mode="shrink", **more)


class Still(SupervisedPlugin):
    """Lets no gradient reach the optimizer: what changes weights is another plugin."""

    def before_update(self, strategy, **kwargs):
        for parameter in strategy.model.parameters():
            parameter.grad = None


def overflowing(model):
    """Finite weights with which one unit of 20 is infinite on every sample."""
    model.features[0].weight[7] = 3e38


def broken(plugin, break_, criterion=flat):
    """Train a broken network on two experiences; returns the strategy and the warnings of ours."""
    torch.manual_seed(0)
    model = FixedHead()
    with torch.no_grad():
        break_(model)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        criterion=criterion,
        train_mb_size=8,
        plugins=[*([plugin] if plugin else []), Still()],
        evaluator=EvaluationPlugin(loggers=[Recorder()]),
    )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for experience in EXPERIENCES.train_stream[:2]:
            strategy.train(experience)
    return strategy, [str(each.message) for each in found if "Plugin" in str(each.message)]


def equal_bits(one, other):
    same = len(one) == len(other)
    return same and all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(one, other, strict=True))


# --- finding them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", WRONG)
def test_any_single_entry_of_weights_and_buffers_is_found_and_named(value, dtype):
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)).to(dtype)
    model.register_buffer("empty", torch.zeros(0))
    assert nonfinite_weights(model) is None
    names = [name for name, each in model.state_dict().items() if each.is_floating_point() and each.numel()]
    assert len(names) == 8
    for name in names:
        for place in range(model.state_dict()[name].numel()):
            wrong = copy.deepcopy(model)
            wrong.state_dict()[name].view(-1)[place] = value
            assert nonfinite_weights(wrong) == f"'{name}' of its weights are not finite"
    with torch.no_grad():
        model[0].weight[0, 0, 0] = model[4].bias[1] = value
    assert nonfinite_weights(nn.DataParallel(model)) == "'0.weight' and 1 more of its weights are not finite"
    assert nonfinite_weights(nn.ReLU()) is None


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh])
@pytest.mark.parametrize("samples", [3, 40])
def test_sums_of_units_never_hide_a_value_that_is_not_finite(activation, samples):
    """One sample of all makes one unit infinite, one NaN, one negative infinite: against a look at every activation."""
    model = nn.Sequential(nn.Linear(5, 6), activation(), nn.Linear(6, 2))
    x = torch.cat([torch.zeros(samples, 2), torch.randn(samples, 3)], 1)
    x[1, :2] = 10.0
    with torch.no_grad():
        model[0].weight[0, :2] = 3e38
        model[0].weight[1, :2] = torch.tensor([3e38, -3e38])
        model[0].weight[2, :2] = -3e38
    oracle = ~model[:2](x).isfinite().all(0)
    with watch(model, find_units(model, torch.randn(2, 5))) as activity:
        for part in x.split(7):
            model(part)
    stats = activity.statistics()
    assert torch.equal(measures.nonfinite_units(stats["0"]), oracle) and bool(oracle[1])
    assert float(measures.nonfinite_fraction(stats)) == pytest.approx(float(oracle.float().mean()))
    assert not (measures.dead_units(stats["0"]) & oracle).any()
    assert not (measures.dormant_units(stats["0"], 1.0) & oracle).any()
    assert nonfinite_activity(stats) == f"{int(oracle.sum())} of 6 units of '0' are NaN or infinite"


def test_outputs_may_hide_classes_by_negative_infinity_alone():
    outputs = torch.zeros(3, 4)
    outputs[:, 2] = -math.inf
    assert nonfinite_activity({}, outputs) is None
    for value in (math.nan, math.inf):
        outputs[1, 0] = value
        assert nonfinite_activity({}, outputs) == "its outputs are NaN or infinite"


def test_a_probe_is_checked_at_the_first_look_alone():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    units, probe = find_units(model, torch.randn(2, 2)), CheckedProbe([(torch.randn(5, 2),)])
    assert torch.equal(probe.outputs(model), model(probe.batches[0][0]))
    with torch.no_grad():
        model[0].bias[1] = math.nan
    assert probe.watch(model, units)[1].isnan().all()
    for look in (lambda probe: probe.outputs(model), lambda probe: probe.watch(model, units)):
        with pytest.raises(NonFiniteError, match="NaN or infinite on 5 training samples"):
            look(CheckedProbe(probe.batches))


def test_all_finite():
    for tensors, expected in (([[1.0], [2.0, 3.0]], True), ([[1.0], [2.0, math.nan]], False), ([[math.inf]], False)):
        assert bool(all_finite([torch.tensor(each) for each in tensors])) == expected


# --- nothing is treated ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["NaN weight", "infinite unit"])
@pytest.mark.parametrize("name", AT_TIMES)
def test_a_network_that_is_not_finite_is_left_as_it_is(name, kind):
    def break_(model):
        if kind == "infinite unit":
            overflowing(model)
        else:
            model.features[3].weight[2, 3] = math.nan

    plugin = QUIET.get(name, MAKE[name])()
    plain, _ = broken(None, break_)
    strategy, told = broken(plugin, break_)
    assert equal_bits(everything(strategy), everything(plain))
    assert plugin.history and all("withheld" in entry and entry["units"] == {} for entry in plugin.history)
    about = "features.3.weight" if kind != "infinite unit" else None
    assert told and all(type(plugin).__name__ in each and "treats nothing in experience" in each for each in told)
    if about:
        assert all(f"'{about}' of its weights are not finite" in each for each in told)
    else:
        assert all("NaN or infinite" in each for each in told)
    logged = [value.name for value in strategy.evaluator.loggers[0].values]
    assert any("Withheld" in each for each in logged)


@pytest.mark.parametrize("name", ["ReDoPlugin", "SynapticStrippingPlugin", "HyperHypoPlugin, prune"])
def test_the_warning_names_the_group_and_says_how_many(name):
    _, told = broken(MAKE[name](), overflowing)
    assert "1 of 20 units of 'features.0' are NaN or infinite" in told[0] and "on 24 training samples" in told[-1]


@pytest.mark.parametrize("make", [MAKE["ReDoPlugin"], lambda: plugins.SynapticStrippingPlugin(every="epoch")])
@pytest.mark.parametrize("value", WRONG)
def test_a_loss_that_is_not_finite_withholds_treatments_in_training(make, value):
    plugin = make()
    strategy, told = broken(plugin, lambda model: None, lambda output, labels: output.sum() * 0 + value)
    assert equal_bits(everything(strategy), everything(broken(None, lambda model: None)[0]))
    assert f"the loss of the latest mini-batch is {value}" in told[0]
    assert {entry["withheld"] for entry in plugin.history} == {f"the loss of the latest mini-batch is {value}"}


@pytest.mark.parametrize("name", ["ReDoPlugin", "FIREPlugin", "SynapticStrippingPlugin", "PlasticityInjectionPlugin"])
def test_once_the_network_is_finite_again_it_is_treated(name):
    class Heals(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            if strategy.experience.current_experience == 2:
                strategy.model.features[0].weight.data[2, 3] = 0.5

    torch.manual_seed(0)
    model, plugin = FixedHead(), plugins.ReDoPlugin(every="experience") if name == "ReDoPlugin" else MAKE[name]()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        criterion=flat,
        train_mb_size=8,
        plugins=[Heals(), plugin, Still()],
        evaluator=EvaluationPlugin(loggers=[Recorder()]),
    )
    strategy.train(EXPERIENCES.train_stream[0])
    model.features[0].weight.data[2, 3] = math.nan
    with pytest.warns(UserWarning, match="treats nothing in experience 1"):
        strategy.train(EXPERIENCES.train_stream[1])
    strategy.train(EXPERIENCES.train_stream[2])
    assert ["withheld" in entry for entry in plugin.history] == [True, False]
    assert nonfinite_weights(strategy.model) is None


def test_units_chosen_before_do_not_learn_alone_where_none_could_be_chosen():
    torch.manual_seed(0)
    model, plugin = FixedHead(), plugins.HyperHypoPlugin(percent=20, adapt_share=1)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        plugins=[plugin],
        evaluator=EvaluationPlugin(loggers=[Recorder()]),
    )
    for experience in EXPERIENCES.train_stream[:2]:
        strategy.train(experience)
    assert plugin._entries
    model.classifier.weight.data[0, 0] = math.nan
    with pytest.warns(UserWarning, match="'classifier.weight'"):
        strategy.train(EXPERIENCES.train_stream[2])
    assert not plugin._entries and "withheld" in plugin.history[-1]


@pytest.mark.parametrize("name", ["ReDoPlugin", "FIREPlugin", "SynapticStrippingPlugin"])
def test_a_preview_says_so_too(name):
    model, x = FixedHead(), torch.rand(6, 8)
    with torch.no_grad():
        overflowing(model)
    with pytest.raises(UserError, match="would treat nothing: .* on 6 training samples"):
        MAKE[name]().preview(model, [x])
    model.features[0].weight.data[1, 1] = math.nan
    with pytest.raises(UserError, match="would treat nothing: 'features.0.weight'"):
        MAKE[name]().preview(model, [x])


# --- at every step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AT_STEPS)
def test_what_acts_at_every_step_says_at_the_end_that_the_network_has_diverged(name):
    def break_(model):
        model.features[3].weight[2, 3] = math.nan

    plugin = MAKE[name]()
    strategy, told = broken(plugin, break_)
    assert "has diverged in experience 0: 'features.3.weight'" in told[0] and len(told) == 2
    assert ["diverged" in entry for entry in plugin.history] == [True, True]
    healthy = MAKE[name]()
    _, told = broken(healthy, lambda model: None)
    assert not told and not any("diverged" in entry for entry in healthy.history)
    if isinstance(plugin, StepwisePlugin):
        assert sum(entry["recycled"] for entry in plugin.history) == 0 < sum(e["recycled"] for e in healthy.history)


def layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return model, find_units(model, torch.randn(2, 4)), initial_values(model)


def sums(value=None):
    """Magnitudes of two layers; one unit of the second has one that is not finite."""
    first, second = torch.arange(1.0, 7.0), torch.arange(1.0, 6.0)
    if value is not None:
        second[4] = value
    return {"0": BatchSums(first, 1), "2": BatchSums(second, 1)}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_continual_backprop_passes_over_a_bad_step_and_goes_on(value):
    """A step that a gradient scaler skips, for example: nothing is replaced, and later all is as without it."""
    model, units, initial = layers()
    method = ContinualBackprop(ContinualBackpropRule(replacement_rate=0.5, maturity=0, weights_every=1))
    before = copy.deepcopy(model.state_dict())
    assert method.step(model, units, sums(value), initial=initial)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert method.replacements() == {"0": [0] * 6, "2": [0] * 5}
    for _ in range(4):
        method.step(model, units, sums(), initial=initial)
    state = method.state_dict()
    assert all(bool(each[key].isfinite().all()) for each in state.values() for key in ("utility", "mean"))
    assert all(map(sum, method.replacements().values()))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_silence_is_not_counted_for_units_that_are_not_finite(value):
    model, units, initial = layers()
    rule = SelfNormalizedResetsRule(maximum_age=3, check_every=1, maximum_share=1.0)
    method, before = SelfNormalizedResets(rule), copy.deepcopy(model.state_dict())
    bad = sums(value)
    bad["0"].values[1] = 0.0  # a silent unit, which is due in the third step
    for _ in range(5):
        method.step(model, units, bad, 1, initial=initial)
    state = method.state_dict()["units"]
    assert state["2"]["age"].tolist() == [0] * 5 and bool(state["0"]["due"][1])
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    good = sums()
    good["0"].values[1] = 0.0
    method.step(model, units, good, 1, initial=initial)
    assert method.replacements() == {"0": [0, 1, 0, 0, 0, 0], "2": [0] * 5}


# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, ["DeadUnits", "NonFiniteUnits"]])
def test_metrics_show_units_that_are_not_finite(asked):
    for break_ in (overflowing, lambda model: None):
        torch.manual_seed(0)
        model, recorder = FixedHead(), Recorder()
        with torch.no_grad():
            break_(model)
        metrics = plasticity_metrics(epoch=True, experience=True, measures=asked)
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            criterion=flat,
            train_mb_size=8,
            plugins=[Still()],
            evaluator=EvaluationPlugin(metrics, loggers=[recorder]),
        )
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            strategy.train(EXPERIENCES.train_stream[0])
            strategy.eval(EXPERIENCES.test_stream[:1])
        told = [str(each.message) for each in found if "neither dead nor dormant" in str(each.message)]
        shown = {value.name.split("_")[0] + "_" + value.name.split("/")[1]: value.value for value in recorder.values}
        if break_ is overflowing:
            assert len(told) == 2 and told[0].startswith(
                "1 of 20 units of 'features.0' are NaN or infinite, and others"
            )
            assert shown["NonFiniteUnits_train_phase"] > 1 / 30
        else:
            assert not told
            assert ("NonFiniteUnits_train_phase" in shown) == (asked is not None)
