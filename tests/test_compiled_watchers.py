"""Who watches a compiled network within its graphs, from when to when, and beside whom."""

import copy
import gc
import itertools
import weakref

import pytest
import torch
import torch._dynamo
from compiled_networks import FORMS, NETWORKS, fresh_compiler, mlp
from torch import nn

from plasticity import find_units, watch
from plasticity.tracing.unwatched import unwatched
from plasticity.watching.activity import Activity


@pytest.fixture(autouse=True)
def compiler():
    yield from fresh_compiler()


def test_one_pass_at_a_time_and_hooks_that_come_and_go(compiler):
    model = mlp()
    x = torch.randn(4, 6)
    units = find_units(model, x)
    model.compile(backend=compiler)
    own = model._compiled_call_impl
    model(x)
    activity, graphs = Activity(model, units, compiled=True), []
    for _ in range(4):
        activity.attach_for_one_pass()
        model(x)
        model(x)
        activity.look_away()
        assert model._compiled_call_impl is own
        model(x)
        activity.detach()
        model(x)
        graphs.append(compiler.graphs)
    assert activity.statistics()["0"].count == 4 * len(x)
    assert graphs == [2] * 4 and compiler.runs == 17  # each is traced once
    torch._dynamo.reset()
    activity.reset()
    activity.attach_for_one_pass()
    model(x)
    assert activity.statistics()["0"].count == len(x) and compiler.graphs == 3
    activity.detach()


def test_modules_may_be_replaced_while_nobody_watches(compiler):
    model = NETWORKS["tokens"][0]()
    x = torch.randn(4, 6)
    activity = Activity(model, find_units(model, x), features=8, compiled=True)
    model.compile(backend=compiler)
    for times in (1, 2):
        activity.attach()
        model(x)
        activity.detach()
        assert {each.count for each in activity.statistics().values()} == {times * 4 * len(x)}
        assert len(activity.features()) == times * len(x) and compiler.graphs == times
        model.inner, model.last = copy.deepcopy(model.inner), copy.deepcopy(model.last)


def test_a_compiled_step_that_nobody_watches_takes_no_notice(compiler):
    model = mlp()
    x = torch.randn(4, 6)
    activity = Activity(FORMS["model.compile"](model, backend=compiler), find_units(model, x), compiled=True)
    step = torch.compile(lambda x: model(x).sum(), backend=compiler, fullgraph=True)
    for _ in range(2):
        activity.attach_for_one_pass()
        step(x)
        runs = compiler.runs
        step(x)
        assert compiler.runs == runs + 1
    assert activity.statistics()["2"].count == 2 * len(x)
    activity.detach()


def test_only_passes_of_the_whole_model_for_those_who_ask(compiler):
    model = mlp()
    x = torch.randn(4, 6)
    units = find_units(model, x)
    compiled = torch.compile(model, backend=compiler)
    with watch(compiled, units, compiled=True) as activity:
        compiled(x)
        model[:2](x)
        with unwatched():
            compiled(x)
        copy.deepcopy(model)(x)
        copy.deepcopy(compiled)(x)
        assert compiler.runs == 1 and activity.statistics()["0"].count == len(x)
        assert torch.equal(model(x), nn.Sequential(*model)(x))
        assert compiler.runs == 1  # it is the other that is compiled
        assert activity.statistics()["0"].count == 2 * len(x)
        twin = copy.deepcopy(activity)
        compiled(x)
        assert activity.statistics()["0"].count == 3 * len(x)
        assert twin.statistics()["0"].count == 2 * len(x)
    for asked in ({}, {"every": 2, "compiled": True}, {"inputs": True, "compiled": True}):
        runs = compiler.runs
        with watch(compiled, units, **asked) as activity:
            compiled(x)
        assert activity.statistics()["0"].count == len(x) and compiler.runs == runs


def test_a_network_in_another_one_runs_uncompiled(compiler):
    """Whose own way of running it is no part of it, as that of several processes."""
    inner = mlp()
    x = torch.randn(4, 6)
    units = find_units(inner, x)
    for model in (torch.compile(nn.DataParallel(inner), backend=compiler), nn.DataParallel(inner)):
        with watch(model, units, compiled=True) as activity:
            model(x)
        assert compiler.runs == 0 and activity.statistics()["0"].count == len(x)
        inner.compile(backend=compiler)


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_several_who_watch_see_all_and_go_in_any_order(order, compiler):
    model = mlp()
    x = torch.randn(4, 6)
    units = find_units(model, x)
    model.compile(backend=compiler)
    own = model._compiled_call_impl
    activities = [Activity(model, units, compiled=number < 2) for number in range(3)]
    for activity in activities:
        activity.attach()
    model(x)
    for gone, number in enumerate(order, start=1):
        activities[number].detach()
        model(x)
        assert activities[number].statistics()["0"].count == gone * len(x)
    assert model._compiled_call_impl is own and compiler.runs == 1 + (order[2] < 2)
    assert not any(module._forward_hooks for module in model.modules())


def test_nothing_waits_for_the_device(compiler):
    """On the meta device there are no values: whatever asks for one raises."""
    build, shape = NETWORKS["functions"]
    model = build()
    units = find_units(model, torch.randn(2, *shape))
    model.to("meta").compile(backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    activity = Activity(model, units, features=5, compiled=True)
    for _ in range(3):
        activity.attach_for_one_pass()
        model(torch.empty(4, *shape, device="meta")).sum().backward()
        optimizer.step()
    statistics = activity.statistics()
    assert statistics["a"].fired.device.type == "meta" and statistics["a"].count == 3 * 4 * 25
    assert activity.features().shape == (5, 4)
    activity.detach()


def test_a_network_and_who_watched_it_can_be_forgotten(compiler):
    model = mlp()
    x = torch.randn(4, 6)
    model.compile(backend=compiler)
    with watch(model, find_units(model, x), compiled=True) as activity:
        model(x)
    assert compiler.runs == 1
    left = [weakref.ref(activity), weakref.ref(activity._compiled)]
    del activity
    gc.collect()
    assert not any(each() for each in left)
