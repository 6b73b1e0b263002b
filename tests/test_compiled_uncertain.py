"""Compiled networks run uncompiled, and it is said, where units are not certain to be seen within their graphs."""

import contextlib
import warnings

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from cases import Net
from compiled_networks import FORMS, NETWORKS, both, fresh_compiler, samples
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from plasticity import find_units, watch
from plasticity.watching.activity import Activity


@pytest.fixture(autouse=True)
def compiler():
    yield from fresh_compiler()


def reads_a_number(model, x):
    x = torch.relu(model.a(x))
    return model.c(torch.relu(model.b(x + 1 if x.sum().item() > 1e9 else x)))


def function_that_the_compiler_hides(model, x):
    """It traces `F.sigmoid` without its name, so that what comes next would be taken for it."""
    return model.c(F.relu(model.b(F.sigmoid(model.a(x)))))


def hides_one_for_some_sizes(model, x):
    h = model.a(x)
    if len(x) == 5:
        F.sigmoid(h)
    return model.c(F.relu(model.norm(h)))


def recomputes(model, x):
    return model.c(checkpoint(lambda h: model.act(model.b(h)), torch.relu(model.a(x)), use_reentrant=False))


def catches(model, x):
    with contextlib.suppress(ValueError):
        model.failing(x)
    return model.c(torch.relu(model.norm(model.a(x))))


def fails(model, x):
    torch.relu(model.b(x))
    raise ValueError


def counts(model, x):
    model.number += 1
    return model.c(torch.relu(model.norm(model.a(x))))


@pytest.mark.parametrize(
    ("function", "reason", "runs"),
    [
        (reads_a_number, "data-dependent", 0),
        (function_that_the_compiler_hides, "does not see all that is called in it", 0),
        (hides_one_for_some_sizes, "does not see all that is called in it", 1),
        (recomputes, "side effect", 0),
        (catches, "does not see all", 0),
        (counts, "FailOnRecompileLimitHit", 2),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_certain_to_be_seen_runs_uncompiled(function, reason, runs, form, compiler):
    def build():
        layers = {name: nn.Linear(6, 6) for name in "abc"}
        model = Net(function, norm=nn.BatchNorm1d(6), act=nn.ReLU(), **layers)
        model.failing = Net(fails, b=nn.Linear(6, 6))
        model.number = 0
        return model

    with torch._dynamo.config.patch(recompile_limit=2):
        (said,) = both(build, samples((6,)), compiler, form, fullgraph=form == "torch.compile")
    assert reason in said and compiler.runs == runs


def test_where_nothing_is_compiled_at_the_time(compiler):
    """Within a mode that sees every operation: the pass must not run twice, which batch normalisation would show."""
    with FlopCounterMode(display=False):
        (said,) = both(*_normalised(), compiler)
    assert "does not compile here" in said and compiler.runs == 0
    with torch.compiler.set_stance("force_eager"):
        assert not both(*_normalised(), compiler)
    assert compiler.runs == 0


def _normalised():
    build, shape = NETWORKS["functions"]
    return build, samples(shape)


def test_a_look_at_a_new_graph_leaves_no_trace(compiler):
    """A graph is compared with a pass that is uncompiled: not of the inputs, and not of what the model keeps."""

    def notes(model, x):
        x.mul_(2)
        model.last_mean = x.mean()
        return model.c(torch.relu(model.a(x)))

    model = Net(notes, a=nn.Linear(6, 6), c=nn.Linear(6, 2))
    units = find_units(model, torch.randn(2, 6))
    model.last_mean = None
    model.compile(backend=compiler)
    x = torch.ones(3, 6)
    with watch(model, units, compiled=True):
        model(x)
    assert torch.equal(x, torch.full((3, 6), 2.0)) and model.last_mean == 2 and compiler.runs == 1


def test_a_model_that_fails_is_watched_again(compiler):
    def sometimes(model, x):
        if len(x) == 1:
            raise ArithmeticError("one is too few")
        return model.c(torch.relu(model.a(x)))

    model = Net(sometimes, a=nn.Linear(6, 6), c=nn.Linear(6, 2))
    units = find_units(model, torch.randn(2, 6))
    model.compile(backend=compiler)
    activity = Activity(model, units, compiled=True)
    own = model._compiled_call_impl
    for size in (3, 1, 4):
        activity.attach_for_one_pass()
        if size > 1:
            model(torch.randn(size, 6))
        else:
            with pytest.raises(ArithmeticError, match="too few"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model(torch.randn(size, 6))
        assert model._compiled_call_impl is own and torch._dynamo.eval_frame._stance.stance == "default"
    assert activity.statistics()["a"].count == 7
    activity.detach()
