"""Every activation that PyTorch offers gives a group, and the right statistics."""

import pytest
import slow_private
import torch
import torch.nn.functional as F
from cases import Net
from torch import nn

from plasticity import find_units, watch
from plasticity.tracing.functions import ACTIVATION_MODULES, ACTIVATIONS, CLAMPS

_MORE = {"prelu": (torch.rand(8),), "threshold": (0.1, 0.0), "_threshold": (0.1, 0.0), "threshold_": (0.1, 0.0)}


def _call(function):
    name = function.__name__
    return (lambda z: function(z, 0.0)) if function in CLAMPS else lambda z: function(z, *_MORE.get(name, ()))


@pytest.mark.parametrize(
    "function", sorted({*ACTIVATIONS, *CLAMPS}, key=lambda f: (f.__name__, str(f))), ids=lambda f: f.__qualname__
)
def test_every_activation_function(function):
    call = _call(function)
    model = Net(lambda m, x: m.b(call(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    model.eval()
    x = torch.randn(5, 6)
    units = find_units(model, x)
    assert [group.name for group in units] == ["a"]
    expected = ACTIVATIONS.get(function, "relu")
    assert units["a"].activation == expected
    slow_private.check(model, units, [(x,)], training=(False,))
    with watch(model, units) as activity, torch.no_grad():
        model(x)
        h = call(model.a(x)).double()
    found = activity.statistics()["a"]
    assert found.count == 5
    assert torch.equal(found.fired, (h > 0).sum(0))
    torch.testing.assert_close(found.mean, h.mean(0))
    torch.testing.assert_close(found.mean_abs, h.abs().mean(0))


@pytest.mark.parametrize("kind", ACTIVATION_MODULES, ids=lambda kind: kind.__name__)
def test_every_activation_module(kind):
    made = kind(0.1, 0.0) if kind is nn.Threshold else kind()
    model = nn.Sequential(nn.Linear(6, 8), made, nn.Linear(8, 3)).eval()
    x = torch.randn(5, 6)
    units = find_units(model, x)
    assert units["0"].activation == ACTIVATION_MODULES[kind]
    slow_private.check(model, units, [(x,)], training=(False,))
    with watch(model, units) as activity, torch.no_grad():
        model(x)
        h = model[1](model[0](x)).double()
    found = activity.statistics()["0"]
    assert torch.equal(found.fired, (h > 0).sum(0))
    torch.testing.assert_close(found.mean, h.mean(0))
    torch.testing.assert_close(found.mean_abs, h.abs().mean(0))


def test_every_activation_module_of_pytorch_is_known():
    others = {"MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax", "GLU"}
    from torch.nn.modules import activation

    assert {kind.__name__ for kind in ACTIVATION_MODULES} == set(activation.__all__) - others


def test_names_of_clamps():
    x = torch.randn(4, 6)
    for call, name in (
        (lambda z: z.clamp(min=0), "relu"),
        (lambda z: torch.clamp(z, 0), "relu"),
        (lambda z: z.clamp(0, 6), "relu6"),
        (lambda z: torch.clip(z, 0.0, max=1), "hardtanh"),
        (lambda z: z.clamp(min=-10, max=10), None),
        (lambda z: z.clamp(min=1e-6), None),
        (lambda z: F.relu(z.clamp(-10, 10)), "relu"),
        (lambda z: z.clamp(max=1), None),
        (lambda z: z.clamp(min=torch.zeros(8)), None),
    ):
        model = Net(lambda m, x, call=call: m.b(call(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
        found = [group.activation for group in find_units(model, x)]
        assert found == ([name] if name else [])


def test_an_activation_in_a_module_of_ones_own():
    class Swish(nn.Module):
        def forward(self, x):
            return F.silu(x)

    shared = Swish()
    model = nn.Sequential(nn.Linear(6, 8), shared, nn.Linear(8, 7), shared, nn.Linear(7, 3))
    x = torch.randn(4, 6)
    units = find_units(model, x)
    slow_private.check_found(units, "0 2", "")
    assert [group.activation for group in units] == ["silu", "silu"]
    with watch(model, units) as activity:
        model(x)
    h = model[:2](x)
    torch.testing.assert_close(activity.statistics()["0"].mean, h.double().mean(0))
    torch.testing.assert_close(activity.statistics()["2"].mean, model[:4](x).double().mean(0))
