"""The penultimate representation, and the mean inputs of writing layers."""

import pytest
import torch
import torch.nn.functional as F
from cases import AVALANCHE, Net
from torch import nn

from plasticity import UnitGroup, UserError, find_units, watch


def test_features_are_the_inputs_of_the_output_layer():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2))
    batches = [torch.randn(3, 4), torch.randn(4, 4)]
    units = find_units(model, batches[0])
    assert units.outputs == ("3",)
    seen = []
    model[3].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    with watch(model, units, features=5) as activity:
        for x in batches:
            model(x)
    assert torch.equal(activity.features(), torch.cat(seen)[:5])
    with watch(model, units) as activity:
        model(batches[0])
    assert activity.features() is None


def test_features_of_convolutions_and_tokens():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(3, 2, 5, 5)
    with watch(model, find_units(model, x), features=9) as activity:
        model(x)
    torch.testing.assert_close(activity.features(), F.relu(model[0](x)).mean((2, 3)))
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(3, 6, 4)
    with watch(model, find_units(model, x), features=100) as activity:
        model(x)
    assert torch.equal(activity.features(), F.relu(model[0](x)).reshape(18, 5))


def test_features_behind_a_softmax_and_of_several_outputs():
    x = torch.randn(3, 4)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2), nn.LogSoftmax(1))
    units = find_units(model, x)
    assert units.outputs == ("2",)
    model = Net(
        lambda m, x: {"logits": m.b(h := F.relu(m.a(x))), "value": m.d(F.relu(m.c(h)))},
        a=nn.Linear(4, 5),
        b=nn.Linear(5, 2),
        c=nn.Linear(5, 7),
        d=nn.Linear(7, 1),
    )
    units = find_units(model, x)
    assert units.outputs == ("b",)
    with watch(model, units, features=9) as activity:
        model(x)
    assert torch.equal(activity.features(), F.relu(model.a(x)))


def test_features_of_heads():
    (case,) = [case for case in AVALANCHE if case.name == "MTSimpleMLP"]
    model, batches = case.model().eval(), case.inputs()
    units = find_units(model, batches[0])
    assert units.outputs == tuple(f"classifier.classifiers.{task}.classifier" for task in range(3))
    with watch(model, units, features=100) as activity:
        for batch in batches[:3]:
            model(*batch)
    assert torch.equal(activity.features(), torch.cat([model.features(x) for x, _ in batches[:3]]))
    with watch(model, units, features=100) as activity:
        model(*batches[3])
    assert activity.features().shape == (4, 16)  # of all tasks in the batch


def test_features_where_an_activation_writes_the_output():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Sigmoid())
    x = torch.randn(3, 4)
    units = find_units(model, x)
    assert units.outputs == ()
    with watch(model, units, features=2) as activity:
        model(x)
    assert torch.equal(activity.features(), model(x)[:2])


def test_input_means():
    model = Net(
        lambda m, x: m.c(F.relu(m.b(input=F.relu(m.a(x)).flatten(2)))).mean(2),
        a=nn.Conv2d(2, 3, 2),
        b=nn.Conv1d(3, 4, 1),
        c=nn.Conv1d(4, 2, 1),
    )
    batches = [torch.randn(3, 2, 5, 5), torch.randn(1, 2, 5, 5)]
    units = find_units(model, batches[0])
    with watch(model, units, inputs=True) as activity:
        for x in batches:
            model(x)
    means = activity.input_means()
    assert set(means) == {"a", "b"}
    x = torch.cat(batches).double()
    torch.testing.assert_close(means["a"], x.mean((0, 2, 3)))
    h = F.relu(model.a(torch.cat(batches))).double()
    torch.testing.assert_close(means["b"], h.mean((0, 2, 3)))
    minima = activity.input_minima()
    assert float(minima["a"]) == float(torch.cat(batches).min()) < 0 and float(minima["b"]) == float(h.min()) == 0
    for ask in ("input_means", "input_minima"):
        with watch(model, units) as activity, pytest.raises(UserError, match="inputs=True"):
            getattr(activity, ask)()


def test_input_means_of_a_vector_without_a_batch():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    group = UnitGroup("0", 5, "tanh", at="1", consumers=[("2", 1)])
    batch = torch.randn(3, 4)
    with watch(model, [group], inputs=True) as activity:
        for x in batch:
            model(x)
    torch.testing.assert_close(activity.input_means()["0"], batch.double().mean(0))


def test_layers_called_by_themselves_do_not_count():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(3, 4)
    with watch(model, find_units(model, x), inputs=True, features=9) as activity:
        model[0](x)
        model[2](torch.randn(7, 5))
        assert activity.features() is None
        assert activity.input_means() == {}
        model(x)
    assert torch.equal(activity.features(), F.relu(model[0](x)))
