"""Groups made by hand, and models that are wrapped, compiled or scripted."""

import pytest
import torch
import torch.nn.functional as F
from cases import AVALANCHE, TORCHVISION, Net
from cases_images import IMAGES, SIGNALS
from cases_vectors import VECTORS
from slow_statistics import Slow, counts, hooks, mlp
from torch import nn

from plasticity import Activity, UnitGroup, UserError, find_units, watch


def test_groups_by_hand():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Conv1d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2))
    model.forward = lambda x: model[5](model[4](model[3](model[2](model[1](model[0](x)).unsqueeze(1)))))
    groups = [
        UnitGroup("0", size=5, activation="relu", at="1"),
        UnitGroup("2", size=3, activation="relu", at="3", consumers=[("5", 5)]),
    ]
    x = torch.randn(6, 4)
    with watch(model, groups) as activity:
        model(x)
    slow = Slow(5)
    slow.add(F.relu(model[0](x)), 1)
    slow.check(activity.statistics()["0"])
    slow = Slow(3)
    slow.add(F.relu(model[2](F.relu(model[0](x)).unsqueeze(1))), 1)
    slow.check(activity.statistics()["2"])


def test_a_group_by_hand_may_be_signed():
    """At a place of the user's choice nothing is taken for granted about signs."""
    model = mlp()
    x = torch.randn(3, 4)
    with watch(model, [UnitGroup("0", 5, "relu", at="0")]) as activity:
        model(x)
    slow = Slow(5)
    slow.add(model[0](x), 1)
    slow.check(activity.statistics()["0"])


def test_groups_that_do_not_fit():
    model, x = mlp(), torch.randn(3, 4)
    with pytest.raises(UserError, match="no module 'nowhere'"), watch(model, [UnitGroup("0", 5, "relu", at="nowhere")]):
        pass
    with pytest.raises(UserError, match="no layer 'nowhere'"), watch(model, [UnitGroup("nowhere", 5, "relu", at="1")]):
        pass
    four = UnitGroup("0", 4, "relu", at="1")
    with pytest.raises(UserError, match="group '0' of 4 units sees activations of shape"), watch(model, [four]):
        model(x)
    rnn = nn.Sequential(nn.Linear(4, 5), nn.LSTM(5, 6))
    with (
        pytest.raises(UserError, match="'1' returns a tuple, no tensor"),
        watch(rnn, [UnitGroup("0", 5, "tanh", at="1")]),
    ):
        rnn(x)
    units = find_units(model, x)
    model[1] = nn.Identity()
    model[0] = nn.Linear(4, 7)
    model[2] = nn.Linear(7, 6)
    with pytest.raises(UserError, match="find the units again"), watch(model, units):
        model(x)
    assert not any(hooks(model))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_cannot_be_watched():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.ReLU()))
    model = nn.Sequential(scripted, nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    for at in ("0", "0.1"):
        group = UnitGroup("1", 5, "relu", at=at)
        with pytest.raises(UserError, match=f"output of '{at}' cannot be watched: TorchScript"), watch(model, [group]):
            pass
    with pytest.raises(UserError, match="the model cannot be watched: TorchScript"), watch(scripted, []):
        pass
    x = torch.randn(3, 4)
    with watch(model, [UnitGroup("1", 6, "relu", at="2")]) as activity:
        model(x)
    slow = Slow(6)
    slow.add(F.relu(model[1](model[0](x))), 1)
    slow.check(activity.statistics()["1"])


@pytest.mark.parametrize("function", [False, True])
def test_compiled_models(function):
    model = mlp()
    if function:
        model = Net(
            lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), a=nn.Linear(4, 5), b=nn.Linear(5, 6), c=nn.Linear(6, 2)
        )
    x = torch.randn(3, 4)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    units = find_units(compiled, x)
    assert [group.private for group in units] == [True, True]
    with watch(model, units) as plain:
        model(x)
    for watched in (compiled, model):  # also if the model inside is named
        with watch(watched, units) as activity:
            assert torch.equal(compiled(x), model(x))
        for name, statistics in activity.statistics().items():
            assert statistics.count == 6
            assert torch.equal(statistics.fired, 2 * plain.statistics()[name].fired)
    model.compile(backend="eager")
    model(x)
    with watch(model, units) as activity:
        model(x)
    assert counts(activity) == [3, 3]


def test_wrappers_are_looked_through():
    model, x = mlp(), torch.randn(3, 4)
    wrapped = nn.DataParallel(model)
    units = find_units(wrapped, x)
    assert [group.name for group in units] == ["0", "2"]
    with watch(wrapped, units) as activity:
        wrapped(x)
    assert counts(activity) == [3, 3]
    assert activity.model is model
    wrapped.device_ids = [0, 1]
    with pytest.raises(UserError, match="replicas of DataParallel cannot be watched"), watch(wrapped, units):
        pass


def test_attach_and_detach():
    model, x = mlp(), torch.randn(3, 4)
    activity = Activity(model, find_units(model, x))
    activity.attach()
    with pytest.raises(UserError, match="already attached"):
        activity.attach()
    model(x)
    activity.detach()
    activity.detach()
    assert not any(hooks(model))
    model(x)
    activity.attach()
    model(x)
    activity.detach()
    assert counts(activity) == [6, 6]


def test_no_units():
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    with watch(model, find_units(model, x), features=10) as activity:
        model(x)
    assert activity.statistics() == {}
    assert torch.equal(activity.features(), x)


# --- any model -------------------------------------------------------------------------------------------------------

DIRECT = [*AVALANCHE, *TORCHVISION, *VECTORS, *IMAGES, *SIGNALS]
DIRECT = [case for case in DIRECT if case.name != "CReLU as one activation"]


def shift_of(model, group):
    """Return the parameter and its entries that shift each unit before its activation, and the scale to set to 0."""
    (write,) = group.writes
    if write.norm is None:
        layer = model.get_submodule(write.layer)
        return layer.bias, layer.weight, write.rows
    norm = model.get_submodule(write.norm)
    return norm.bias, norm.weight, write.norm_rows


@pytest.mark.parametrize("case", DIRECT, ids=lambda case: case.name)
def test_statistics_belong_to_the_rows_that_write(case):
    """A unit whose row writes a constant shows the constant's activation, and no other unit does."""
    model, (example, *_) = case.model().eval(), case.inputs()
    units = find_units(model, example)
    with watch(model, units) as activity, torch.no_grad():
        model(*example)
    usual = activity.statistics()
    for group in units:
        assert usual[group.name].count > 0
        if not group.private or len(group.writes) > 1:
            continue
        shift, scale, rows = shift_of(model, group)
        if shift is None:
            continue
        unit = group.size // 2
        kept = shift.detach().clone(), scale.detach().clone()
        with torch.no_grad():
            scale[rows[unit]] = 0
            shift[rows[unit]] = 2.5
            with watch(model, [group]) as activity:
                model(*example)
            shift.copy_(kept[0])
            scale.copy_(kept[1])
        found = activity.statistics()[group.name]
        constant = float(getattr(F, group.activation, getattr(torch, group.activation, None))(torch.tensor(2.5)))
        assert float(found.mean[unit]) == pytest.approx(constant, rel=1e-5), group.name
        assert float(found.mean_abs[unit]) == pytest.approx(constant, rel=1e-5)
        assert int(found.fired[unit]) == found.count == usual[group.name].count
        others = [other for other in range(group.size) if other != unit]
        torch.testing.assert_close(found.mean[others], usual[group.name].mean[others], rtol=1e-6, atol=1e-9)
