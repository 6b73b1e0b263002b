"""Networks whose weights, or activations, are in half precision."""

import pytest
import torch
from exclusion_cases import MAKE, trained
from stripping_streams import FixedHead, everything
from torch import nn

from plasticity import find_units, plugins, watch
from plasticity.errors import UserError
from plasticity.methods.normalize_and_project import grown_norm, project
from plasticity.methods.parameters import lengths, total_norm

HALVES = {torch.bfloat16: 2**-7, torch.float16: 2**-10}  # and the distance of neighbouring numbers at 1
OTHERWISE = {
    "DemonPruningPlugin": lambda: plugins.DemonPruningPlugin(regularisation=0.1, noise_std=0.0),  # other noise is drawn
    "PlasticityInjectionPlugin": lambda: plugins.PlasticityInjectionPlugin(head=["classifier"]),
    "SpectralRegularizationPlugin": lambda: plugins.SpectralRegularizationPlugin(0.01, biases=False),
}


class Cast(FixedHead):
    """Takes float32 inputs and returns float32 outputs, whatever its weights are."""

    def forward(self, x):
        return super().forward(x.to(self.classifier.weight.dtype)).float()


def momentum(network):
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)


def make_plugin(name):
    return OTHERWISE.get(name, MAKE[name])()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", [name for name in MAKE if name != "PlasticityInjectionPlugin"])  # changes no weights
def test_weights_in_half_precision_come_out_as_those_in_float32_rounded(name, dtype):
    """On a flat loss nothing but the plugin changes weights; the same units are treated, masks are the same."""
    wide, half = make_plugin(name), make_plugin(name)
    one = trained(wide, lambda: Cast().to(dtype).float(), optimizer=momentum)
    other = trained(half, lambda: Cast().to(dtype), optimizer=momentum)
    assert [entry.get("units") for entry in wide.history] == [entry.get("units") for entry in half.history]
    for key, parameter in other.model.named_parameters():
        exact = one.model.get_parameter(key)
        assert parameter.dtype == dtype and bool(parameter.isfinite().all())
        assert float((parameter.float() - exact).abs().max()) <= 3 * HALVES[dtype] * float(exact.abs().max()), key
    if hasattr(half, "masks"):
        assert list(half.masks) == list(wide.masks)
        for layer in half.masks:
            kept = half.masks.kept(other.model, layer)
            assert torch.equal(kept, wide.masks.kept(one.model, layer)) and kept.dtype == torch.bool
            assert not other.model.get_submodule(layer).weight[~kept].any()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["L2InitPlugin", "NormalizeAndProjectPlugin", "DASHPlugin", "ReDoPlugin"])
def test_training_in_half_precision_stays_finite(name, dtype):
    strategy = trained(make_plugin(name), lambda: Cast().to(dtype), criterion=nn.CrossEntropyLoss(), optimizer=momentum)
    assert all(bool(each.isfinite().all()) for each in everything(strategy))


@pytest.mark.parametrize("dtype", HALVES)
def test_lengths_neither_overflow_nor_lose_small_weights(dtype):
    tensors = [
        torch.full((50, 50), 100.0, dtype=dtype),
        torch.zeros(3, dtype=dtype),
        torch.full((9,), 1e-3, dtype=dtype),
    ]
    exact = [each.double().norm() for each in tensors]
    for found, expected in zip(lengths(tensors), exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(total_norm(tensors), torch.stack(exact).norm(), rtol=1e-6, atol=0)
    singles = [each.float() for each in tensors]
    assert all(torch.equal(a, b) for a, b in zip(lengths(singles), torch._foreach_norm(singles), strict=True))

    squares = [grown_norm(None, each) for each in tensors]
    torch.testing.assert_close(squares[0].double(), exact[0].square(), rtol=1e-6, atol=0)
    doubled = [2 * each for each in tensors]
    project(doubled, squares)
    for found, expected in zip(doubled, tensors, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_statistics_under_autocast_are_those_of_the_activations_as_they_are(dtype):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), torch.randn(300, 6)
    units = find_units(model, x[:2])
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        seen = model[:2](x)
        with watch(model, units) as activity:
            for part in x.split(70):
                model(part)
    stat = activity.statistics()["0"]
    assert seen.dtype == dtype
    assert torch.equal(stat.fired, (seen > 0).sum(0)) and stat.count == 300
    torch.testing.assert_close(stat.mean_abs, seen.detach().double().abs().mean(0), rtol=1e-6, atol=0)


class Autocast(FixedHead):
    """Computes in half precision while it trains, as a strategy does that has a forward of its own for that."""

    dtype = torch.bfloat16

    def forward(self, x):
        with torch.autocast("cpu", self.dtype, enabled=self.training):
            return super().forward(x).float()


class Float16(Autocast):
    dtype = torch.float16


WATCHING = ("ContinualBackpropPlugin", "SelfNormalizedResetsPlugin")


@pytest.mark.parametrize("build", [Autocast, Float16])
@pytest.mark.parametrize("name", MAKE)
def test_units_under_autocast_are_treated_as_without_it(name, build):
    """On a flat loss: bit-equal what is judged on a probe; of what is judged by training passes the same units."""
    one, other = make_plugin(name), make_plugin(name)
    try:
        plain = trained(one)
        strategy = trained(other, build)
    except UserError as error:
        assert name == "PlasticityInjectionPlugin" and "head" in str(error)  # functions stand behind it
        return
    assert [entry.get("units") for entry in one.history] == [entry.get("units") for entry in other.history]
    for a, b in zip(everything(plain), everything(strategy), strict=True):
        if name in WATCHING:
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
        else:
            assert torch.equal(a, b)
