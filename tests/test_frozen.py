"""Layers that the user has frozen, and weights that are computed from others: their values are left as they are."""

import warnings

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from exclusion_cases import EXPERIENCES, LAYERS, MAKE, equal, of_layer, trained
from stripping_streams import FixedHead, Recorder
from test_exclude import Normalised
from torch import nn

from plasticity import find_units, plugins
from plasticity.errors import UserError
from plasticity.exclusion import Exclusion

UNLEARNED = ("GradientDormancyPlugin", "PlasticityInjectionPlugin")  # need a gradient, or replace the head


def frozen(*names, build=FixedHead):
    """Make a network with some layers, or single parameters, frozen."""

    def make():
        model = build()
        for name, parameter in model.named_parameters():
            if name in names or name.rpartition(".")[0] in names:
                parameter.requires_grad_(False)
        return model

    return make


@pytest.mark.parametrize("name", [name for name in MAKE if name not in UNLEARNED])
def test_no_plugin_changes_a_frozen_layer_and_each_changes_others(name):
    """On a flat loss nothing but the plugin changes weights; the optimizer's state, too, is as without it."""
    changed = []
    for layer in ("features.0", "classifier"):
        plain, strategy = trained(None, frozen(layer)), trained(MAKE[name](), frozen(layer))
        assert equal(of_layer(strategy, layer), of_layer(plain, layer)), layer
        changed += [not equal(of_layer(strategy, other), of_layer(plain, other)) for other in LAYERS]
    if name != "HyperHypoPlugin":  # trains by the loss, or does not
        assert any(changed)


class Constant(Normalised):
    """A normaliser as users freeze it: in eval mode."""

    def train(self, mode=True):
        super().train(mode)
        self.bn2.eval()
        return self


@pytest.mark.parametrize("name", [name for name in MAKE if name not in UNLEARNED])
def test_no_plugin_changes_a_frozen_normaliser_nor_its_statistics(name):
    make = frozen("bn2", build=Constant)
    plain, strategy = trained(None, make), trained(MAKE[name](), make)
    now, before = strategy.model.bn2.state_dict(), plain.model.bn2.state_dict()
    assert all(torch.equal(each, before[key]) for key, each in now.items())


@pytest.mark.parametrize("part", ["features.0.weight", "features.0.bias"])
def test_one_frozen_parameter_is_enough_for_units_and_the_other_learns_on(part):
    other = "features.0.bias" if part.endswith("weight") else "features.0.weight"
    units = find_units(frozen(part)(), torch.randn(2, 8))
    assert Exclusion().left_alone(frozen(part)(), units) == {
        "features.0": "`features.0`, which writes it, is frozen",
    }
    plain, strategy = trained(None, frozen(part)), trained(MAKE["L2Plugin"](), frozen(part))
    for name in (part, other):
        same = torch.equal(strategy.model.get_parameter(name), plain.model.get_parameter(name))
        assert same == (name == part)


def test_what_a_frozen_layer_writes_reads_or_normalises():
    make = frozen("conv1", "bn3", "head.2", build=Normalised)
    model = make()
    units = find_units(model, torch.randn(3, 8))
    assert Exclusion().left_alone(model, units) == {
        "conv1": "`conv1`, which writes it, is frozen",
        "conv3": "`bn3`, which writes it, is frozen",
    }
    found = Exclusion().treatable(model, units)
    assert [(group.name, group.private) for group in found] == [("conv2", True), ("head.0", False)]
    assert found["head.0"].reason == "`head.2`, which reads it, is frozen"
    assert Exclusion("conv1").left_alone(model, units)["conv1"] == "`conv1`, which writes it, is excluded"
    assert Exclusion().treatable(Normalised(), units) is units


@pytest.mark.parametrize("name", ["ReDoPlugin", "ContinualBackpropPlugin", "SynapticStrippingPlugin"])
def test_where_all_is_frozen_it_is_said_before_training_is_over(name):
    with pytest.raises(UserError, match="`features.0`, which writes it, is frozen"):
        trained(MAKE[name](), frozen("features.0", "features.3"))


def test_injection_refuses_a_frozen_head():
    with pytest.raises(UserError, match="would replace 'classifier', of which 'classifier' is frozen"):
        trained(plugins.PlasticityInjectionPlugin(head=["classifier"]), frozen("classifier"))
    plugin = plugins.PlasticityInjectionPlugin(head=["classifier"])
    trained(plugin, frozen("features.0"))
    assert len(plugin.history) == 1


SOON = {
    "ReDoPlugin": lambda: plugins.ReDoPlugin(every=2, tau=1.0),
    "ContinualBackpropPlugin": lambda: plugins.ContinualBackpropPlugin(replacement_rate=0.2, maturity=0),
    "GradientDormancyPlugin": lambda: plugins.GradientDormancyPlugin(every=2, batches=2, tau=1.0),
}


@pytest.mark.parametrize("name", SOON)
def test_freezing_between_experiences_holds_from_the_next_one_on_and_can_be_taken_back(name):
    """At a learning rate of 0 nothing but the plugin changes weights."""

    class Freezes(SupervisedPlugin):
        changed = ()

        def before_training_exp(self, strategy, **kwargs):
            strategy.model.features[0].requires_grad_(strategy.experience.current_experience != 1)
            self.before = strategy.model.features[0].weight.detach().clone()

        def after_training_exp(self, strategy, **kwargs):
            self.changed += (not torch.equal(self.before, strategy.model.features[0].weight),)

    torch.manual_seed(0)
    model, freezes = FixedHead(), Freezes()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        plugins=[freezes, SOON[name]()],
        evaluator=EvaluationPlugin(loggers=[Recorder()]),
    )
    for experience in EXPERIENCES.train_stream:
        strategy.train(experience)
    assert freezes.changed == (True, False, True)


# --- weights that are computed ---------------------------------------------------------------------------------------

COMPUTED = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "weight norm, old": nn.utils.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "spectral norm, old": nn.utils.spectral_norm,
}


def computed(kind, layer):
    """Make a network one of whose weights is computed from others."""

    def make():
        model = FixedHead()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            COMPUTED[kind](model.get_submodule(layer))
        return model

    return make


@pytest.mark.parametrize("kind", COMPUTED)
def test_units_with_computed_weights_are_left_alone_with_the_reason(kind):
    model = computed(kind, "features.3")()
    units = find_units(model, torch.randn(3, 8))
    reason = "the weight of `features.3`, which writes it, is computed from other parameters"
    assert Exclusion().left_alone(model, units) == {"features.3": reason}
    (left,) = Exclusion().treatable(model, units)
    assert left.name == "features.0" and not left.private and "`features.3`" in left.reason


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("name", [name for name in MAKE if name not in UNLEARNED])
def test_every_plugin_leaves_a_computed_weight_alone_or_changes_what_it_is_computed_from(name, kind):
    """Methods on units act elsewhere; methods on whole weights may change its own parameters, which are no weights."""
    make = computed(kind, "classifier")
    plain = trained(None, make)
    before = {key: each.clone() for key, each in plain.model.classifier.named_parameters()}
    try:
        strategy = trained(MAKE[name](), make)
    except UserError as error:
        assert "classifier" in str(error) and ("computed" in str(error) or "not that of a plain" in str(error))
        return
    after = dict(strategy.model.classifier.named_parameters())
    assert before.keys() == after.keys()
    on_units = hasattr(strategy.plugins[0], "masks") or strategy.plugins[0].method in (
        "redo",
        "continual-backprop",
        "self-normalized-resets",
    )
    if on_units and "Demon" not in name:  # whose noise is for all parameters
        assert all(torch.equal(before[key], each) for key, each in after.items())
    x = torch.rand(5, 8)
    strategy.model.eval()
    head, outputs = strategy.model.classifier, strategy.model(x)
    recomputed = nn.functional.linear(strategy.model.features(x), head.weight, head.bias)
    assert torch.equal(outputs, recomputed) and bool(outputs.isfinite().all())


@pytest.mark.parametrize("kind", COMPUTED)
def test_masks_hold_beside_a_computed_weight(kind):
    class Holds(SupervisedPlugin):
        seen = 0

        def after_update(self, strategy, **kwargs):
            for name in stripping.masks:
                weight = strategy.model.get_submodule(name).weight
                assert torch.equal(weight == 0, ~stripping.masks.kept(strategy.model, name))
                self.seen += 1

    stripping, holds = plugins.SynapticStrippingPlugin(), Holds()
    loss = nn.CrossEntropyLoss()
    strategy = trained(stripping, computed(kind, "features.3"), criterion=loss, moved=False, beside=[lambda _: holds])
    assert list(stripping.masks) == ["features.0"] and holds.seen > 0
    assert isinstance(strategy.model.features[0].weight, nn.Parameter)
