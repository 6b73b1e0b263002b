"""Networks that are compiled, and watched within their graphs and as if they ran uncompiled."""

import contextlib
import copy
import warnings

import torch
import torch._dynamo
import torch.nn.functional as F
from cases import Net
from torch import nn

from plasticity import find_units, watch

FORMS = {
    "model.compile": lambda model, **asked: (model.compile(**asked), model)[1],
    "torch.compile": lambda model, **asked: torch.compile(model, **asked),
}


class Compiler:
    """A backend that counts the graphs that it gets and how often they run."""

    def __init__(self):
        self.graphs = self.runs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


def fresh_compiler():
    """For a fixture: nothing is compiled before a test, and nothing is left of it."""
    torch._dynamo.reset()
    assert torch._dynamo.eval_frame._stance.stance == "default"
    yield Compiler()
    assert torch._dynamo.eval_frame._stance.stance == "default"
    torch._dynamo.reset()


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))


def functions(model, x):
    """Activation functions, one of them in place, a module that is called twice, dropout and a running mean."""
    x = F.relu(model.norm(model.a(x)))
    x = model.act(model.b(x) + x)
    x = model.act(model.b(F.dropout(x, 0.3, model.training)))
    return model.last(F.leaky_relu(model.b(x), 0.1, inplace=True).mean((2, 3)))


def tokens(model, x):
    """Units along the last dimension of three, and in an inner module; an activation that is changed in place."""
    x = model.inner(x.unsqueeze(1).repeat(1, 4, 1))
    h = F.gelu(model.b(x))
    h += 1
    return model.last(h.mean(1))


def several_heads(model, x):
    """Another way for other sizes, and no single layer that writes the output."""
    x = torch.relu(model.a(x))
    return F.silu(model.b(x)) if len(x) % 2 else F.silu(model.c(x))


NETWORKS = {
    "mlp": (mlp, (6,)),
    "functions": (
        lambda: Net(
            functions,
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(4, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            act=nn.ReLU(),
            last=nn.Linear(4, 3),
        ),
        (3, 5, 5),
    ),
    "tokens": (
        lambda: Net(
            tokens,
            inner=Net(lambda m, x: torch.relu(m.a(x)), a=nn.Linear(6, 6)),
            b=nn.Linear(6, 5),
            last=nn.Linear(5, 3),
        ),
        (6,),
    ),
    "several heads": (
        lambda: Net(several_heads, a=nn.Linear(6, 4), b=nn.Linear(4, 3), c=nn.Linear(4, 3)),
        (6,),
    ),
}
MODES = {
    "training": contextlib.nullcontext,
    "evaluation": torch.no_grad,
    "inference": torch.inference_mode,
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
}


def passes(model, called, inputs, mode="training"):
    """Run a network, backwards too where it can; return outputs, gradients, buffers and the random state."""
    model.train(mode in ("training", "bfloat16"))
    outputs = []
    for number, x in enumerate(inputs):
        torch.manual_seed(number)
        with MODES[mode]():
            output = called(x)
        if output.requires_grad:
            output.square().sum().backward()
        outputs.append(output.detach().clone())
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [*outputs, *gradients, *model.buffers(), torch.get_rng_state()]


def check(activity, expected):
    """Compare what was seen with what was seen of a network that runs uncompiled."""
    found, wanted = activity.statistics(), expected.statistics()
    assert list(found) == list(wanted)
    for name, stat in wanted.items():
        assert found[name].count == stat.count > 0
        assert found[name].fired.dtype == torch.int64 and torch.equal(found[name].fired, stat.fired)
        for one, other in ((found[name].mean, stat.mean), (found[name].mean_abs, stat.mean_abs)):
            assert one.dtype == torch.float64
            assert bool(((one - other).abs() <= 1e-6 * stat.mean_abs + 1e-14).all())
    assert torch.equal(activity.features(), expected.features())


def both(build, inputs, compiler, form="model.compile", mode="training", **asked):
    """Watch a network uncompiled, and its twin in its compiled form; return the warnings of the second."""
    torch.manual_seed(0)
    model = build()
    units = find_units(model, inputs[0])
    assert units
    plain = copy.deepcopy(model)
    with watch(plain, units, features=11) as expected:
        ends = passes(plain, plain, inputs, mode)
    called = FORMS[form](model, **{"backend": compiler, **asked})
    with warnings.catch_warnings(record=True) as caught, watch(called, units, features=11, compiled=True) as activity:
        warnings.simplefilter("always")
        same = passes(model, called, inputs, mode)
    assert len(same) == len(ends) and all(map(torch.equal, same, ends))
    check(activity, expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return [str(each.message) for each in caught if "uncompiled" in str(each.message)]


def samples(shape, sizes=(4, 5, 4, 3, 5)):
    return [torch.randn(size, *shape) for size in sizes]
