"""Units of compiled networks are watched within the compiled graph, all of them, as if the network ran uncompiled."""

import copy

import pytest
import torch
from cases import Net
from compiled_networks import FORMS, MODES, NETWORKS, both, fresh_compiler, mlp, passes, samples
from torch import nn

from plasticity import watch
from plasticity.groups import UnitGroup
from plasticity.watching.compiled import KINDS


@pytest.fixture(autouse=True)
def compiler():
    yield from fresh_compiler()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_is_seen_as_of_an_uncompiled_network(name, form, compiler):
    build, shape = NETWORKS[name]
    inputs = samples(shape)
    assert not both(build, inputs, compiler, form)
    assert compiler.runs == len(inputs)  # every pass, and each in one graph


@pytest.mark.parametrize("mode", MODES)
def test_in_whatever_mode_it_runs(mode, compiler):
    build, shape = NETWORKS["mlp" if mode == "bfloat16" else "functions"]
    inputs = samples(shape)
    assert not both(build, inputs, compiler, mode=mode, fullgraph=True)
    assert compiler.runs == len(inputs)


def test_in_graphs_of_derivatives_of_channels_last():
    build, shape = NETWORKS["functions"]
    inputs = [x.to(memory_format=torch.channels_last) for x in samples(shape)]
    assert not both(lambda: build().to(memory_format=torch.channels_last), inputs, "aot_eager", dynamic=False)


def test_many_sizes_and_large_activations(compiler):
    """Sizes beyond those that are kept apart, and more activations in a row than are added up in float32."""
    assert not both(NETWORKS["mlp"][0], samples((6,), range(2, KINDS + 9)), compiler, dynamic=True)
    assert compiler.graphs == 1
    conv = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    assert not both(lambda: conv, samples((2, 70, 50), (2, 2)), compiler)
    assert not both(lambda: mlp(), samples((6,), (3000, 3000)), compiler)


def test_groups_made_by_hand(compiler):
    """Whose units lie in runs, are seen in every call of a module, or do not fit."""
    model = Net(lambda m, x: m.last(m.act(m.a(m.act(m.a(x))))), a=nn.Linear(6, 6), act=nn.ReLU(), last=nn.Linear(6, 2))
    plain = copy.deepcopy(model)
    model.compile(backend=compiler)
    inputs = samples((6,))
    units = [UnitGroup("a", size=3, activation="relu", at="act"), UnitGroup("last", size=2, activation="x", at="last")]
    with watch(plain, units) as expected:
        passes(plain, plain, inputs)
    with watch(model, units, compiled=True) as activity:
        passes(model, model, inputs)
    assert compiler.runs == len(inputs)
    for name, stat in expected.statistics().items():
        found = activity.statistics()[name]
        assert (found.count, found.fired.tolist()) == (stat.count, stat.fired.tolist())
        torch.testing.assert_close(found.mean, stat.mean, rtol=1e-6, atol=1e-9)
    units = [UnitGroup("a", size=4, activation="relu", at="act")]
    with (
        pytest.warns(UserWarning, match="uncompiled"),
        watch(model, units, compiled=True),
        pytest.raises(Exception, match="find the units again"),
    ):
        model(inputs[0])
