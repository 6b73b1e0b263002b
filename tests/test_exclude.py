"""Layers that plugins leave alone."""

import contextlib
import copy

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from exclusion_cases import EXPERIENCES, LAYERS, MAKE, equal, of_layer, trained
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_models import OPERATIONS, Program
from stripping_streams import FixedHead, Network, Recorder, run
from torch import nn

from plasticity import find_units, plugins
from plasticity.errors import UserError
from plasticity.exclusion import Exclusion
from plasticity.metrics import plasticity_metrics
from plasticity.probe import Probe

UNLEARNED = ("GradientDormancyPlugin", "PlasticityInjectionPlugin")  # need a gradient, or replace the head


@pytest.fixture(scope="module")
def plain():
    return trained(None)


def test_every_plugin_is_here():
    assert {name.split(",")[0] for name in MAKE} == {name for name in plugins.__all__ if name != "TreatmentPlugin"}


@pytest.mark.parametrize("name", [name for name in MAKE if name not in UNLEARNED])
def test_no_plugin_writes_to_an_excluded_layer_and_each_writes_elsewhere(name, plain):
    """On a flat loss nothing but the plugin changes weights; the optimizer's state, too, is as without it."""
    free = trained(MAKE[name]())
    touched = {layer for layer in LAYERS if not equal(of_layer(free, layer), of_layer(plain, layer))}
    if name != "HyperHypoPlugin":  # trains by the loss, or does not
        assert touched
    for layer in ("features.0", "classifier"):  # without the middle one no unit is left that could be made new
        strategy = trained(MAKE[name](exclude=layer))
        assert equal(of_layer(strategy, layer), of_layer(plain, layer)), layer


@pytest.mark.parametrize("layer", ["features.0", "features.3"])
def test_gradient_dormancy_too_where_there_are_gradients(layer):
    """At a learning rate of 0 only the plugin changes weights."""
    make, loss = MAKE["GradientDormancyPlugin"], nn.CrossEntropyLoss()
    start = of_layer(trained(None, criterion=loss, rate=0.0, moved=False), layer)
    free = of_layer(trained(make(), criterion=loss, rate=0.0, moved=False), layer)
    assert not torch.equal(start["weight"], free["weight"])
    exclude = [layer] if layer == "features.3" else layer
    try:
        kept = of_layer(trained(make(exclude=exclude), criterion=loss, rate=0.0, moved=False), layer)
    except UserError as error:
        assert layer == "features.3" and "`features.3`, which reads it, is excluded" in str(error)
    else:
        assert layer == "features.0" and torch.equal(start["weight"], kept["weight"])


AT_ONCE = {
    "ReDoPlugin": lambda **more: plugins.ReDoPlugin(tau=1.0, **more),
    "SynapticStrippingPlugin": lambda **more: plugins.SynapticStrippingPlugin(
        fallback="reinitialise", fraction=0.5, max_row_sparsity=0.1, **more
    ),
    "HyperHypoPlugin": lambda **more: plugins.HyperHypoPlugin("prune", percent=40, maximum_pruned=0.9, **more),
    "DemonPruningPlugin": plugins.DemonPruningPlugin,
    "DemonPruningPlugin, shrink": lambda **more: plugins.DemonPruningPlugin("shrink", **more),
    "AdaptivePlugin": lambda **more: plugins.AdaptivePlugin(dead=0.0, growth=1.0, **more),
    "FIREPlugin": plugins.FIREPlugin,
    "ShrinkPerturbPlugin": plugins.ShrinkPerturbPlugin,
}


def with_state(model):
    """An optimizer with a state of random numbers."""
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        moments = {"exp_avg": torch.randn_like(parameter), "exp_avg_sq": torch.rand_like(parameter)}
        optimizer.state[parameter] = {"step": torch.tensor(3.0), **moments}
    return optimizer


def held(tensors, optimizer):
    """Copies of some tensors, and of the optimizer's state of them."""
    state = [each for tensor in tensors for each in optimizer.state.get(tensor, {}).values()]
    return [each.detach().clone() for each in (*tensors, *state)]


def silenced(model):
    """A network half of whose units are dead."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias[::2] = -100.0
    return model


def treated(model, x, seed, name, layer):
    """Let a plugin treat a network but for a layer; returns whether it did, and checks that layer."""
    plugin, optimizer, probe = AT_ONCE[name](exclude=layer), with_state(model), Probe([(x,)])
    tensors = sorted(plugin.excluded.tensors(model), key=id)
    before, everything = held(tensors, optimizer), held(list(model.parameters()), optimizer)
    plugin.take_hold(model)
    plugin._between = True  # where the adaptive plugin treats whole weights, too
    with contextlib.suppress(UserError):  # nothing is left to treat, or may be
        plugin.treat(model, plugin.units_of(model, lambda: (x,)), probe, optimizer, torch.Generator().manual_seed(seed))
    for one, other in zip(before, held(tensors, optimizer), strict=True):
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    now = held(list(model.parameters()), optimizer)
    return len(now) != len(everything) or any(not torch.equal(a, b) for a, b in zip(now, everything, strict=True))


def test_nothing_of_a_random_model_is_written_to_where_it_is_excluded():
    changed = set()

    @settings(max_examples=30, deadline=None)
    @given(
        steps=st.lists(
            st.tuples(st.integers(0, len(OPERATIONS) - 1), st.integers(0, 2), st.integers(0, 4), st.integers(0, 23)),
            min_size=4,
            max_size=12,
        ),
        images=st.booleans(),
        seed=st.integers(0, 1000),
        which=st.integers(0, 100),
    )
    def check(steps, images, seed, which):
        torch.manual_seed(seed)
        x = torch.randn(3, 3, 4, 4) if images else torch.randn(3, 4)
        model = silenced(Program(steps, x))
        names = [key for key, module in model.named_modules() if list(module.parameters(recurse=False))]
        assume(names)
        for plugin in AT_ONCE:
            if treated(copy.deepcopy(model), x, seed, plugin, names[which % len(names)]):
                changed.add(plugin)

    check()
    assert len(changed) >= 6  # they have treated something else


class Normalised(nn.Module):
    """A residual block with batch normalisation, a head of two layers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))

    def forward(self, x):
        h = torch.relu(self.bn1(self.conv1(x.view(-1, 2, 2, 2))))
        h = torch.relu(h + self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(h))))))
        return self.head(h.mean((2, 3)))


def test_what_an_excluded_layer_writes_reads_or_normalises():
    torch.manual_seed(0)
    model = Normalised()
    units = find_units(model, torch.randn(3, 8))
    assert [group.name for group in units] == ["conv1", "conv2", "conv3", "head.0"]
    assert units["conv2"].private and units["head.0"].private

    excluded = Exclusion(["*.0", "bn2"])
    found = excluded.treatable(model, units)
    assert [group.name for group in found] == ["conv1", "conv3"]  # conv3 adds to what conv1 writes
    assert excluded.left_alone(model, units) == {
        "conv2": "`bn2`, which writes it, is excluded",
        "head.0": "`head.0`, which writes it, is excluded",
    }
    readers = Exclusion("conv3").treatable(model, units)
    assert [(group.name, group.private) for group in readers] == [
        ("conv1", False),
        ("conv2", False),
        ("head.0", True),
    ]
    assert readers["conv2"].reason == "`conv3`, which reads it, is excluded"
    assert Exclusion().treatable(model, units) is units


@pytest.mark.parametrize("name", ["L2InitPlugin", "ShrinkPerturbPlugin", "SpectralRegularizationPlugin", "L2Plugin"])
def test_normalisers_can_be_excluded_by_a_pattern(name):
    plain, kept = trained(None, Normalised), trained(MAKE[name](exclude="bn*"), Normalised)
    for key, parameter in kept.model.named_parameters():
        assert torch.equal(parameter, plain.model.get_parameter(key)) == key.startswith("bn"), key


def test_names_patterns_and_everything_inside():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    for pattern, layers in (
        ("0", {"0"}),
        (0, {"0"}),
        ("1", {"1", "1.0", "1.1"}),
        ("1.*", {"1.0", "1.1"}),
        ("?", {"0", "1", "1.0", "1.1", "2"}),
        ("0|2", {"0", "2"}),
        (["0", "1.0"], {"0", "1.0"}),
        (("[02]",), {"0", "2"}),
        ((), set()),
        (None, set()),
    ):
        assert Exclusion(pattern).layers(model) == layers
    assert Exclusion("*").tensors(model) == set(model.parameters())
    assert Exclusion("2").tensors(nn.DataParallel(model)) == set(model[2].parameters())


def test_a_shared_parameter_is_excluded_under_all_its_names():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[4].weight = model[0].weight
    assert Exclusion("0").layers(model) == {"0", "4"}
    model.add_module("again", model[2])
    assert Exclusion("again").layers(model) == {"2", "again"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("clasifier", r"no layer 'clasifier' \(did you mean classifier\?\)"),
        ("clasifier*", r"no layer 'clasifier\*' \(did you mean classifier\?\)"),
        ("feature.3", r"no layer 'feature.3' \(did you mean features.3 or"),
        ("Classifier", r"did you mean classifier"),
        ("zzz", "there are: features, classifier, and what is inside them"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused_with_what_is_close(pattern, message):
    with pytest.raises(UserError, match=message):
        Exclusion(["features.0", pattern]).layers(FixedHead())
    for make in (plugins.ReDoPlugin, plugins.FIREPlugin, plugins.L2Plugin, plugins.ContinualBackpropPlugin):
        with pytest.raises(UserError, match=message):
            run([make(exclude=pattern)], FixedHead)


@pytest.mark.parametrize("wrong", [0.5, True, "", ["features.0", ""], [None], "a||b"])
def test_what_is_no_name_is_refused_at_once(wrong):
    with pytest.raises(UserError, match="exclude takes names of layers or patterns"):
        plugins.SynapticStrippingPlugin(exclude=wrong)


def test_a_head_that_grows_stays_excluded():
    """Its parameters are other objects in every experience."""
    for make in (MAKE["L2InitPlugin"], MAKE["ShrinkPerturbPlugin"], MAKE["FIREPlugin"]):
        plain = trained(None, Network, moved=False)
        kept = trained(make(exclude="classifier*"), Network, moved=False)
        assert equal(of_layer(kept, "classifier"), of_layer(plain, "classifier"))
        assert len(kept.model.classifier.classifier.weight) == 4


def test_the_first_report_says_what_is_left_alone_and_why():
    redo = MAKE["ReDoPlugin"](exclude="classifier")
    run([redo], FixedHead)
    assert redo.history[0]["skipped"] == {"features.3": "`classifier`, which reads it, is excluded"}
    backprop = MAKE["ContinualBackpropPlugin"](exclude="features.0")
    run([backprop], FixedHead)
    assert backprop.history[0]["skipped"] == {"features.0": "`features.0`, which writes it, is excluded"}
    assert {name for entry in backprop.history for name in entry["units"]} == {"features.3"}


def test_stripping_needs_no_outgoing_weights():
    """So an excluded reader does not keep it from treating units."""
    stripping = plugins.SynapticStrippingPlugin(exclude="features.3")
    run([stripping], FixedHead)
    assert list(stripping.masks) == ["features.0"]


def test_while_some_units_learn_alone_excluded_layers_learn_as_always():
    class First(plugins.HyperHypoPlugin):
        moved = None

        def before_training_iteration(self, strategy, **kwargs):
            super().before_training_iteration(strategy, **kwargs)
            self.old = {name: each.detach().clone() for name, each in strategy.model.named_parameters()}

        def after_update(self, strategy, **kwargs):
            super().after_update(strategy, **kwargs)
            if self._stage is not None:
                new = strategy.model.named_parameters()
                self.moved = {name: int((each != self.old[name]).sum()) for name, each in new}

    plugin = First(percent=10, exclude="classifier")
    strategy = run([plugin], lambda: FixedHead().requires_grad_(True))
    head = strategy.model.classifier
    assert plugin.moved["classifier.weight"] == head.weight.numel() and plugin.moved["classifier.bias"] == 6
    assert 0 < plugin.moved["features.3.weight"] <= 2 * 20 and plugin.moved["features.3.bias"] == 2


def test_metrics_leave_out_the_units_of_excluded_layers():
    recorders = [Recorder(), Recorder()]
    for recorder, exclude in zip(recorders, (None, "features.3|classifier"), strict=True):
        metrics = plasticity_metrics(
            epoch=True, per_layer=True, measures=["DeadUnits", "WeightMagnitude"], exclude=exclude
        )
        torch.manual_seed(0)
        model = FixedHead()
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=8,
            evaluator=EvaluationPlugin(metrics, loggers=[recorder]),
        )
        strategy.train(EXPERIENCES.train_stream[0])
    every, some = ({value.name: value.value for value in recorder.values} for recorder in recorders)
    gone = {name for name in every if name.startswith("DeadUnits") and name.endswith("features.3")}
    assert len(gone) == 1 and every.keys() - some.keys() == gone
    (total,) = [name for name in every if name.startswith("DeadUnits") and "Task000" in name.rpartition("/")[2]]
    (layer,) = [name for name in every if name.startswith("DeadUnits") and name.endswith("features.0")]
    assert some[total] == some[layer] == every[layer] != every[total]


def test_injection_refuses_a_head_with_an_excluded_layer():
    with pytest.raises(UserError, match="would replace 'classifier', of which 'classifier' is excluded"):
        run([plugins.PlasticityInjectionPlugin(head=["classifier"], exclude="class*")], FixedHead)
    plugin = plugins.PlasticityInjectionPlugin(head=["classifier"], exclude="features.0")
    run([plugin], FixedHead)
    assert len(plugin.history) == 1
