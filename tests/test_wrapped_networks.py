"""Networks that are laid out otherwise in memory, compiled, wrapped, shared in parts, or quantised."""

import pytest
import torch
from exclusion_cases import MAKE, equal, of_layer, trained
from stripping_streams import FixedHead, everything, same
from test_exclude import Normalised
from test_half_weights import make_plugin
from torch import nn

from plasticity import find_units, plugins
from plasticity.errors import UserError


@pytest.mark.parametrize("name", MAKE)
def test_channels_last_changes_nothing_but_rounding(name):
    def last():
        return Normalised().to(memory_format=torch.channels_last)

    one, other = MAKE[name](), MAKE[name]()
    try:
        plain = trained(one, Normalised)
    except UserError as error:
        with pytest.raises(UserError, match=str(error)[:30].replace("(", r"\(")):
            trained(other, last)
        return
    strategy = trained(other, last)
    assert [entry.get("units") for entry in one.history] == [entry.get("units") for entry in other.history]
    assert not strategy.model.conv1.weight.is_contiguous() or "shrink" in name
    for key, parameter in strategy.model.named_parameters():
        torch.testing.assert_close(parameter, plain.model.get_parameter(key), rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", [name for name in MAKE if name != "DemonPruningPlugin, shrink"])
def test_one_device_of_data_parallel_is_as_none(name):
    plain, wrapped = trained(make_plugin(name)), trained(make_plugin(name), lambda: nn.DataParallel(FixedHead()))
    assert same(everything(plain), everything(wrapped))


def test_units_are_masked_under_data_parallel_not_removed_and_it_is_said():
    plugin = MAKE["DemonPruningPlugin, shrink"]()
    trained(plugin, lambda: nn.DataParallel(FixedHead()))
    first = plugin.history[0]
    assert first["removed"] == 0 < first["masked"]
    assert all(reason.startswith("masked, not removed: ") for reason in first["left_because"].values())


STEPWISE = ["ContinualBackpropPlugin", "SelfNormalizedResetsPlugin", "GradientDormancyPlugin"]


@pytest.mark.parametrize("name", ["ReDoPlugin", "SynapticStrippingPlugin", *STEPWISE])
def test_replicas_of_data_parallel_are_refused(name):
    class Several(nn.DataParallel):
        """Without the devices: it says that it has two."""

        device_ids = property(lambda self: [0, 1], lambda self, value: None)

        def forward(self, *inputs):
            return self.module(*inputs)

    with pytest.raises(UserError, match="replicas of DataParallel cannot be watched"):
        trained(make_plugin(name), lambda: Several(FixedHead()))


COMPILED = ["ReDoPlugin", "ContinualBackpropPlugin", "SynapticStrippingPlugin", "L2InitPlugin", "FIREPlugin"]


@pytest.mark.parametrize("name", [*COMPILED, "HareTortoisePlugin", "HyperHypoPlugin"])
def test_compiled_networks_are_treated_as_others(name):
    torch._dynamo.reset()
    plain = trained(make_plugin(name))
    compiled = trained(make_plugin(name), lambda: torch.compile(FixedHead(), backend="eager"))
    assert same(everything(plain), everything(compiled))


class Shared(FixedHead):
    """Its middle layer is applied twice, and stands under two names."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(10, 10)
        self.again = self.inner

    def forward(self, x):
        return self.classifier(torch.relu(self.again(torch.relu(self.inner(self.features(x))))))


@pytest.mark.parametrize("name", ["ReDoPlugin", "ContinualBackpropPlugin", "SelfNormalizedResetsPlugin"])
def test_units_of_a_shared_layer_are_never_made_new(name):
    plain, strategy = trained(None, Shared), trained(make_plugin(name), Shared)
    assert equal(of_layer(strategy, "inner"), of_layer(plain, "inner"))
    assert not equal(of_layer(strategy, "features.0"), of_layer(plain, "features.0"))


# --- quantised weights -----------------------------------------------------------------------------------------------

QUANTISATION = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:Please use quant_min and quant_max:UserWarning:torch",
    "ignore:torch.quantize_per_tensor:UserWarning:torch",
)


@QUANTISATION
def test_quantised_networks_are_refused_in_words():
    model = torch.ao.quantization.quantize_dynamic(FixedHead(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UserError, match="has no hidden units: no Linear or Conv layer is followed by an activation"):
        plugins.ReDoPlugin().preview(model, [torch.rand(4, 8)])


@QUANTISATION
def test_networks_prepared_for_quantisation_are_refused_in_words_and_left_as_they_are():
    """Its observers have no size before the first pass."""
    model = FixedHead().train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    torch.ao.quantization.prepare_qat(model, inplace=True)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    units = find_units(model, torch.rand(4, 8))
    now = model.state_dict()
    assert before.keys() == now.keys() and all(torch.equal(each, now[name]) for name, each in before.items())
    assert len(units) == 0  # their weights and activations pass through operations of quantisation
    model(torch.rand(4, 8))
    with pytest.raises(UserError, match="has no hidden units"):
        plugins.ReDoPlugin().preview(model, [torch.rand(4, 8)])
