"""Which forward passes are watched, without a host sync, and without traces in the model."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from cases import AVALANCHE, TORCHVISION, Net
from slow_statistics import compare, counts, hooks, mlp
from torch import nn
from torch.utils.checkpoint import checkpoint

from plasticity import find_units, watch


def test_only_whole_forward_passes_inside_the_block():
    model, x = mlp(), torch.randn(3, 4)
    units = find_units(model, x)
    model(x)
    with watch(model, units) as activity:
        assert counts(activity) == [0, 0]
        assert bool(activity.statistics()["0"].mean.isnan().all())
        model[:2](x)
        model[1](x)
        model[3](model[2](model[0](x)))
        assert counts(activity) == [0, 0]
        model(x)
        assert counts(activity) == [3, 3]
    model(x)
    assert counts(activity) == [3, 3]


def test_functions_called_outside_do_not_count():
    model = Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    x = torch.randn(3, 4)
    units = find_units(model, x)
    with watch(model, units) as activity:
        F.relu(torch.ones(3, 5))
        model(x)
        F.relu(torch.ones(3, 5))
        model(x)
    assert counts(activity) == [6]
    torch.testing.assert_close(activity.statistics()["a"].mean, F.relu(model.a(x)).double().mean(0))


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_again_for_a_backward_pass_does_not_count(reentrant):
    model = Net(
        lambda m, x: m.c(F.relu(m.b(checkpoint(m.body, x, use_reentrant=reentrant)))),
        body=nn.Sequential(nn.Linear(4, 5), nn.ReLU()),
        b=nn.Linear(5, 6),
        c=nn.Linear(6, 2),
    )
    x = torch.randn(3, 4, requires_grad=True)
    units = find_units(model, x)
    with watch(model, units) as activity:
        model(x).sum().backward()
        assert counts(activity) == [3, 3]
        model(x).sum().backward()
    assert counts(activity) == [6, 6]


def test_copies_of_the_model_are_not_watched():
    """LwF copies the model with its hooks, and runs the copy."""
    model, x = mlp(), torch.randn(3, 4)
    units = find_units(model, x)
    with watch(model, units, inputs=True, features=10) as activity:
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), model(x))
    assert counts(activity) == [6, 6]
    assert not any(hooks(model))
    assert counts(activity) == [6, 6]


def test_no_hooks_are_left():
    for model, x in (
        (mlp(), torch.randn(3, 4)),
        (AVALANCHE[2].model(), torch.randn(2, 3, 32, 32)),
    ):
        units = find_units(model, x)
        user = model.register_forward_hook(lambda *args: None)
        before = hooks(model)
        with watch(model, units, inputs=True, features=5):
            assert sum(hooks(model)) > sum(before)
            model(x)
        assert hooks(model) == before
        user.remove()


def test_no_hooks_are_left_after_an_exception():
    model = Net(lambda m, x: m.b(F.relu(m.a(x)) * m.check(x)), a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    model.check = lambda x: 1
    x = torch.randn(3, 4)
    units = find_units(model, x)
    before = hooks(model)

    def fail(x):
        raise KeyError("a user's mistake")

    with watch(model, units) as activity:
        model.check = fail
        with pytest.raises(KeyError):
            model(x)
        assert torch.overrides._get_current_function_mode_stack() == []
        model.check = lambda x: 1
        F.relu(torch.ones(3, 5))
        model(x)
        assert activity.statistics()["a"].count == 6  # also what was seen before the exception
    assert hooks(model) == before
    model.check = fail
    with pytest.raises(KeyError), watch(model, units):
        model(x)
    assert hooks(model) == before
    assert torch.overrides._get_current_function_mode_stack() == []


def test_an_exception_that_the_model_catches():
    def forward(m, x):
        try:
            m.broken(x)
        except RuntimeError:
            x = x + 1
        return m.b(F.relu(m.a(x)))

    class Broken(nn.Module):
        def forward(self, x):
            return F.relu(x) @ x

    model = Net(forward, broken=Broken(), a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    compare(model, [torch.randn(3, 4), torch.randn(2, 4)], lambda m, x: {"a": (F.relu(m.a(x + 1)), 1)})


def test_statistics_are_snapshots():
    model, x = mlp(), torch.randn(3, 4)
    with watch(model, find_units(model, x)) as activity:
        model(x)
        first = activity.statistics()["0"]
        kept = copy.deepcopy(first)
        model(x)
        second = activity.statistics()["0"]
    assert (first.count, second.count) == (3, 6)
    for field in ("fired", "mean", "mean_abs"):
        assert torch.equal(getattr(first, field), getattr(kept, field))
    second.fired.fill_(-1)
    second.mean_abs.fill_(-1)
    assert int(activity.statistics()["0"].fired.min()) >= 0
    assert float(activity.statistics()["0"].mean_abs.min()) >= 0


def test_modes_may_change_between_passes():
    model, x = mlp(), torch.randn(3, 4)
    with watch(model, find_units(model, x), inputs=True, features=100) as activity:
        with torch.inference_mode():
            model(x)
        model(x).sum().backward()
        with torch.no_grad():
            model(x)
        with torch.inference_mode():
            model(x.clone())
    assert counts(activity) == [12, 12]
    torch.testing.assert_close(activity.statistics()["0"].mean, F.relu(model[0](x)).double().mean(0))
    torch.testing.assert_close(activity.input_means()["0"], x.double().mean(0))
    assert activity.features().shape == (12, 6)


def test_reset():
    model, x = mlp(), torch.randn(3, 4)
    units = find_units(model, x)
    with watch(model, units, inputs=True, features=9) as activity:
        model(x)
        activity.reset()
        assert counts(activity) == [0, 0]
        assert activity.features() is None
        assert activity.input_means() == {}
        model(x[:2])
    assert counts(activity) == [2, 2]
    assert activity.features().shape == (2, 6)
    torch.testing.assert_close(activity.statistics()["0"].mean, F.relu(model[0](x[:2])).double().mean(0))


def test_two_watches_of_one_model():
    model = Net(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), a=nn.Linear(4, 5), b=nn.Linear(5, 6), c=nn.Linear(6, 2))
    x = torch.randn(3, 4)
    units = find_units(model, x)
    with watch(model, units) as outer:
        model(x)
        with watch(model, [units["b"]]) as inner:
            model(x)
        model(x)
    assert counts(outer) == [9, 9]
    assert counts(inner) == [3]
    assert torch.equal(outer.statistics()["b"].fired, 3 * inner.statistics()["b"].fired)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16, channels last"])
@pytest.mark.parametrize("name", ["SimpleMLP", "SimpleCNN", "SlimResNet18", "vgg_bn", "resnet basic", "convnext"])
def test_a_watched_step_does_not_sync(name, half):
    """On the meta device there are no values: whatever asks for one raises."""
    (case,) = [case for case in (*AVALANCHE, *TORCHVISION) if case.name == name]
    model, (example, *_) = case.model(), case.inputs()
    units = find_units(model, example)
    kind = torch.bfloat16 if half else torch.float32
    model.to("meta", kind, memory_format=torch.channels_last if half else torch.preserve_format).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with watch(model, units, inputs=True, features=100) as activity:
        for _ in range(2):
            outputs = model(*(part.to("meta", kind) for part in example))
            loss = F.cross_entropy(outputs, torch.zeros(len(outputs), dtype=torch.int64, device="meta"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = activity.statistics()
    assert set(found) == {group.name for group in units}
    for group in units:
        statistics = found[group.name]
        assert statistics.fired.shape == statistics.mean.shape == statistics.mean_abs.shape == (group.size,)
        assert statistics.fired.device.type == "meta"
        assert statistics.count > 0
    assert activity.features().device.type == "meta"
    assert all(mean.device.type == "meta" for mean in activity.input_means().values())


def test_watching_changes_nothing():
    for case in (*AVALANCHE[:3], TORCHVISION[3]):
        results = []
        for watched in (False, True):
            model, (example, *_) = case.model().train(), case.inputs()
            units = find_units(model, example)
            optimizer = torch.optim.Adam(model.parameters())
            torch.manual_seed(3)
            with watch(model, units if watched else [], inputs=watched, features=7 * watched):
                for _ in range(2):
                    optimizer.zero_grad()
                    model(*example).square().mean().backward()
                    optimizer.step()
            results.append([*model.state_dict().values(), torch.get_rng_state()])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), case.name
