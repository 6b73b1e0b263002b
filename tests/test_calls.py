"""Looking at calls without hooks: like hooks in what is seen, and nothing is left of it outside of passes."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from cases import Net
from slow_statistics import hooks, mlp
from torch import nn

from plasticity import UserError, find_units, watch
from plasticity.tracing.unwatched import unwatched
from plasticity.watching import calls
from plasticity.watching.activity import Activity
from plasticity.watching.calls import EVERY, Calls, Look

PLACE = "_compiled_call_impl"


def placed(model):
    return [name for name, module in model.named_modules() if PLACE in vars(module)]


def made(model, entered=lambda: True, left=None):
    """Calls whose passes are all looked at, as an activity does."""
    found = Calls(model, entered, lambda: (left and left(), found.end()))
    return found


def test_lookers_see_the_calls_that_they_asked_for():
    """In any order of asking, and in every pass anew."""
    asked = [(0, "a"), (EVERY, "b"), (2, "c"), (EVERY, "d"), (2, "e"), (5, "f")]
    relu, x = nn.ReLU(), torch.ones(2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = relu

        def forward(self, x):
            for _ in range(4):
                x = self.relu(x) + 1
            return x

    seen = []
    for number in range(len(asked)):
        model = Net()
        looks = made(model)
        for call, name in asked[number:] + asked[:number]:
            looks.output("relu", call, Look(lambda output, name=name: seen.append((int(output[0]), name))))
        looks.wait()
        for _ in range(2):
            seen.clear()
            model(x)
            expected = [(1, "a"), (3, "c"), (3, "e"), *((call, name) for call in (1, 2, 3, 4) for name in "bd")]
            assert sorted(seen) == sorted(expected)
        looks.rest()


def test_what_is_seen_is_what_hooks_see():
    """Also of modules with hooks that change what goes in and comes out, called with keywords, or twice."""
    torch.manual_seed(0)

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x, *, scale):
            return self.linear(x) * scale

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.relu = Inner(), nn.ReLU()

        def forward(self, x):
            return self.relu(self.inner(self.relu(self.inner(x, scale=2.0)), scale=-1.0))

    model, x = Outer(), torch.randn(3, 4)
    model.relu.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model.relu.register_forward_hook(lambda module, args, output: output * 3)
    by_hooks, by_calls = [], []
    handles = []
    looks = made(model)
    for name, _ in model.named_modules():
        looks.before(name, lambda args, kwargs, name=name: by_calls.append((name, *map(torch.clone, args), kwargs)))
        looks.output(name, EVERY, Look(lambda output, name=name: by_calls.append((name, output.clone()))))
    looks.wait()
    plain = model(x)
    looks.rest()
    for name, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(
                lambda module, args, kwargs, name=name: by_hooks.append((name, *map(torch.clone, args), kwargs)),
                with_kwargs=True,
                prepend=True,
            ),
            module.register_forward_hook(
                lambda module, args, output, name=name: by_hooks.append((name, output.clone()))
            ),
        ]
    assert torch.equal(model(x), plain)
    assert len(by_calls) == len(by_hooks) == 14
    for seen, expected in zip(by_calls, by_hooks, strict=True):
        assert seen[0] == expected[0] and len(seen) == len(expected)
        for one, other in zip(seen[1:], expected[1:], strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_modules_are_as_before_outside_of_passes():
    model, x = mlp(), torch.randn(3, 4)
    inside = []
    model[1].register_forward_hook(lambda *args: inside.append(placed(model)))
    before, attributes = hooks(model), [dict(vars(module)) for module in model.modules()]
    activity = Activity(model, find_units(model, x), features=5)
    inside.clear()
    activity.attach_for_one_pass()
    assert placed(model) == [""]
    model(x)
    assert hooks(model) == before and len(inside.pop()) > 2
    model(x)
    assert inside == [[]]
    for module, kept in zip(model.modules(), attributes, strict=True):
        assert vars(module).keys() == kept.keys() and all(vars(module)[name] is kept[name] for name in kept)
    with pytest.raises(UserError, match="already attached"):
        activity.attach()
        activity.attach()
    activity.detach()
    assert placed(model) == [] and not activity.attached


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
def test_a_pass_that_fails_or_is_interrupted_ends(error):
    model, x = mlp(), torch.randn(3, 4)
    activity = Activity(model, find_units(model, x))

    def fail(*args):
        raise error

    for attach, waiting in ((activity.attach_for_one_pass, []), (activity.attach, [""])):
        hook = model[3].register_forward_hook(fail)
        attach()
        with pytest.raises(error):
            model(x)
        hook.remove()
        assert placed(model) == waiting
        seen = activity.statistics()["0"].count
        model[1](x)
        assert activity.statistics()["0"].count == seen  # it is no pass of the model


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("second", [0, 1, 2])
def test_several_watch_and_end_in_any_order(first, second):
    model, x = mlp(), torch.randn(3, 4)
    units = find_units(model, x)
    watchers = [Activity(model, units) for _ in range(3)]
    for each in watchers:
        each.attach()
    model(x)
    order = [watchers.pop(first)]
    order[0].detach()
    model(x)
    order.append(watchers.pop(second % 2))
    order[1].detach()
    model(x)
    watchers[0].detach()
    assert placed(model) == []
    model(x)
    assert [each.statistics()["0"].count for each in (*order, watchers[0])] == [3, 6, 9]


def test_one_that_ends_within_a_pass_does_not_take_the_others_along():
    model, x = mlp(), torch.randn(3, 4)
    units = find_units(model, x)
    for number in range(3):
        watchers = [Activity(model, units) for _ in range(3)]
        for each in watchers:
            each.attach()
        hook = model[1].register_forward_hook(lambda *args, each=watchers[number]: each.detach())
        model(x)
        hook.remove()
        model(x)
        for each in watchers:
            each.detach()
        assert placed(model) == []
        last = [each.statistics()["2"].count for each in watchers]
        assert last == [0 if place == number else 6 for place in range(3)]


def test_what_a_user_compiled_stays():
    model, x = mlp(), torch.randn(3, 4)
    model.compile(backend="eager")
    model[1].compile(backend="eager")
    mine = [vars(module)[PLACE] for module in (model, model[1])]
    expected = model(x)
    units = find_units(model, x)
    with watch(model, units) as activity:
        assert torch.equal(model(x), expected)
    assert [vars(module)[PLACE] for module in (model, model[1])] == mine and len(placed(model)) == 2
    assert activity.statistics()["0"].fired.tolist() == (model[0](x) > 0).sum(0).tolist()


class Whole(nn.Sequential):
    """Copies all its attributes."""

    def __getstate__(self):
        return dict(vars(self))


def test_copies_are_as_if_nobody_looked():
    torch.manual_seed(0)
    for kind in (nn.Sequential, Whole):
        model, x, copied = kind(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(3, 4), []
        expected = model(x)
        units = find_units(model, x)
        model[1].register_forward_hook(copy_within(model, copied))
        with watch(model, units) as activity:
            model(x)
            count = activity.statistics()["0"].count
            assert len(copied) == 3
            for each in copied:
                assert not [name for name in placed(each) if vars(each.get_submodule(name))[PLACE] is not None]
                assert torch.equal(each(x), expected)
            assert activity.statistics()["0"].count == count == 3


def copy_within(model, copied):
    def hook(module, args, output):
        kept, module._forward_hooks = module._forward_hooks, type(module._forward_hooks)()
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copied.extend([copy.deepcopy(model), torch.load(file, weights_only=False)])
        copied.append(pickle.loads(pickle.dumps(model)))
        module._forward_hooks = kept

    return hook


def test_a_pass_within_a_pass_takes_its_place():
    """What the inner one has seen is kept; the rest of the outer one is no longer looked at."""
    functions = Net(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), a=nn.Linear(4, 5), b=nn.Linear(5, 6), c=nn.Linear(6, 2)
    )
    for model, (first, second) in ((mlp(), "02"), (functions, "ab")):
        x = torch.randn(3, 4)
        units = find_units(model, x)
        inner = []

        def again(module, args, model=model, x=x, inner=inner):
            if not inner:
                inner.append(True)
                model(x)

        model.get_submodule(second).register_forward_pre_hook(again)
        with watch(model, units) as activity:
            model(x)
        found = activity.statistics()
        assert (found[first].count, found[second].count) == (6, 3) and placed(model) == []
        assert torch.overrides._get_current_function_mode_stack() == []


def test_nobody_looks_at_what_runs_unwatched_within_a_pass():
    model, x = mlp(), torch.randn(3, 4)

    def aside(module, args):
        with unwatched():
            model[1](torch.ones(100, 5))

    model[2].register_forward_pre_hook(aside)
    with watch(model, find_units(model, x)) as activity:
        model(x)
    assert activity.statistics()["0"].count == 3


@pytest.mark.parametrize("enabled", [True, False])
def test_transformers_take_no_short_cut_while_they_are_watched(enabled):
    """In evaluation PyTorch's own layers leave out the modules they are made of, but not those that are looked at."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0), 2)
    model.eval()
    x = torch.randn(3, 5, 8)
    units = find_units(model, x)
    assert len(units) == 2
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        with watch(model, units) as activity, torch.no_grad():
            model(x)
            assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert [each.count for each in activity.statistics().values()] == [15, 15]


def test_a_pytorch_that_calls_modules_otherwise_is_refused(monkeypatch):
    model, x = mlp(), torch.randn(3, 4)
    units = find_units(model, x)
    monkeypatch.setattr(calls, "_PLACE", "_nobody_asks_for_this")
    calls._place_is_known.cache_clear()
    try:
        with pytest.raises(UserError, match="calls modules in a way that is not known"), watch(model, units):
            pass
    finally:
        calls._place_is_known.cache_clear()
