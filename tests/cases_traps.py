"""Hand-written models in which units are seen by other ways than the columns of a layer that reads them."""

import contextlib
import types

import numpy as np
import torch
import torch.nn.functional as F
from cases import Case, Net, made, randn, vectors
from torch import nn

AB = {"a": (6, 8), "b": (8, 3)}
ABC = {"a": (6, 8), "b": (6, 8), "c": (8, 3)}


class _Double(torch.autograd.Function):
    """A function with its own gradient, in plain operations."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class _ReverseMean(torch.autograd.Function):
    """A function with its own gradient that mixes units."""

    @staticmethod
    def forward(ctx, x):
        return x - x.mean(1, keepdim=True)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@torch.library.custom_op("plasticity_tests::clone", mutates_args=())
def _mixing_clone(x: torch.Tensor) -> torch.Tensor:
    """Has the name of an operator that moves nothing, and is none."""
    return x - x.mean()


def _write_slices(m, x):
    out = torch.zeros(len(x), 8)
    out[:, :4] = F.relu(m.a(x))
    out[:, 4:] = F.relu(m.b(x))
    return m.c(out)


def _write_through_view(m, x):
    h = F.relu(m.a(x))
    view = h[:, 2:]
    h.mul_(2)
    view.copy_(h[:, :6].clone())
    return m.b(h)


def _old_view(m, x):
    z = m.a(x)
    view = z.view(-1, 2, 8)
    z.relu_()
    return m.b(view)


def _out_argument(m, x):
    with torch.no_grad():
        buffer = torch.empty(len(x), 8)
        torch.mul(torch.relu(m.a(x)), 2, out=buffer)
        view = buffer.view(-1, 2, 8)
        torch.mul(torch.relu(m.b(x)), 2, out=buffer)
        return m.c(view)


def _out_argument_over_units(m, x):
    with torch.no_grad():
        h = torch.relu(m.a(x))
        view = h.view(-1, 2, 8)
        torch.mul(torch.relu(m.b(x)), 2, out=h)
        return m.c(view) + m.d(x).mean()


def _foreach(m, x):
    h, g = torch.relu(m.a(x)), torch.relu(m.b(x))
    torch._foreach_add_([h], [g.flip(1)])
    return m.c(h)


def _steered(m, x):
    h = F.relu(m.a(x))
    return m.b(h) if float(h[0, 0]) > 0.3 else m.b(h) + 1


def _steered_by_mean(m, x):
    h = F.relu(m.a(x))
    scale = 2.0 if h.mean() > 0.3 else 1.0
    return m.b(h) * scale


def _through_numpy(m, x):
    h = F.relu(m.a(x))
    return m.b(h) + torch.from_numpy(np.asarray(h.detach())).sum(1, keepdim=True)


def _through_array_interface(m, x):
    h = F.relu(m.a(x))
    return m.b(h) + float(sum(h.tolist()[0]))


def _through_data(m, x):
    h = F.relu(m.a(x))
    return m.b(h) + h.data[:, :1]


def _noise_around(m, x):
    h = torch.relu(m.a(x))
    return m.b(h) + torch.normal(h.mean(1, keepdim=True), 1.0)


def _noise_around_one(m, x):
    h = torch.relu(m.a(x))
    return m.b(h) + torch.normal(h[:, :1], 1.0)


def _coin_of_units(m, x):
    h = torch.sigmoid(m.a(x))
    return m.b(h) + torch.empty(len(x), 8).bernoulli_(h)[:, :1]


def _filled(m, x):
    h = torch.relu(m.a(x))
    return m.b(h) + torch.zeros(len(x), 1).fill_(h[0, 0])


def _own_index(m, x):
    i = torch.relu(m.a(x)).clamp(max=7).long()[0]
    return m.b(torch.relu(m.a2(x))) + i[i].sum()


def _chooses(m, x):
    h, g = torch.relu(m.a(x)), torch.relu(m.b(x))
    return m.c(g.gather(1, (h > 0.5).long())) + m.d(h)


def _masked(m, x):
    h, g = torch.relu(m.a(x)), torch.relu(m.b(x))
    return m.c(torch.where(h > 0.5, g, 0.0)) + m.d(h)


def _sorted(m, x):
    return m.b(torch.relu(m.a(x)).sort(1).values)


def _cumulative(m, x):
    return m.b(torch.relu(m.a(x)).cumsum(1))


def _batch_mean(m, x):
    h = torch.relu(m.a(x))
    return m.b(h - h.mean(0, keepdim=True))


def _swallows(m, x):
    with contextlib.suppress(RuntimeError):
        m.bad(x)
    return m.b(F.relu(m.a(x)))


class _Bad(nn.Module):
    def forward(self, x):
        return F.relu(x) @ x


class _Reader(nn.Module):
    """A module whose name for its own activation must not be mistaken for its parent's."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return F.relu(F.dropout(self.inner(x), 0.1, self.training))


def _kept(m, x):
    h = torch.relu(m.a(x))
    out = m.b(h) + m.memory
    m.memory.copy_(h.detach().mean(0)[:3])
    return out


def _remembered(m, x):
    h = torch.relu(m.a(x))
    out = m.b(h) + getattr(m, "memory", [torch.zeros(1)])[0].mean()
    m.memory = [h.detach()]
    return out


def _with_memory():
    model = Net(_kept, a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    model.register_buffer("memory", torch.zeros(3))
    return model


TRAPS = [
    vectors(_write_slices, name="slices of a buffer written", a=(6, 4), b=(6, 4), c=(8, 3), private="", watched="a b"),
    vectors(_write_through_view, name="written through a view", **AB, private="", watched="a"),
    vectors(_old_view, name="an old view of activations", **AB, private="", watched="a"),
    vectors(_out_argument, name="out=", **ABC, private="", watched="a b"),
    vectors(_out_argument_over_units, name="out= over units", **ABC, d=(6, 2), private="", watched="a b"),
    vectors(_foreach, name="foreach", **ABC, private="", watched="a b"),
    vectors(_steered, name="one unit steers the program", **AB, private="", watched="a"),
    vectors(_steered_by_mean, name="units steer the program", **AB, private="", watched="a"),
    vectors(_through_numpy, name="numpy", **AB, private="", watched="a"),
    vectors(_through_array_interface, name="tolist", **AB, private="", watched="a"),
    vectors(_through_data, name=".data", **AB, private="", watched="a"),
    vectors(_noise_around, name="noise around the mean", **AB, private="", watched="a"),
    vectors(_noise_around_one, name="noise around one unit", **AB, private="", watched="a"),
    vectors(_coin_of_units, name="coins with units as odds", **AB, private="", watched="a"),
    vectors(_filled, name="filled with a unit", **AB, private="", watched="a"),
    vectors(_own_index, name="indexed by itself", a=(6, 8), a2=(6, 8), b=(8, 3), private="a2", watched="a"),
    vectors(_chooses, name="units choose units", **ABC, d=(8, 3), private="", watched="a b"),
    vectors(_masked, name="units mask units", **ABC, d=(8, 3), private="", watched="a b"),
    vectors(_sorted, name="sorted", **AB, private="", watched="a"),
    vectors(_cumulative, name="cumulative sum", **AB, private="", watched="a"),
    vectors(_batch_mean, name="mean over the batch", **AB, private="a"),
    vectors(_remembered, name="kept in an attribute", **AB, private="", watched="a"),
    made(_with_memory, name="kept in a buffer", private="", watched="a"),
    vectors(lambda m, x: m.b(_Double.apply(F.relu(m.a(x)))), name="autograd function", **AB, private="a"),
    vectors(
        lambda m, x: m.b(_ReverseMean.apply(F.relu(m.a(x)))),
        name="mixing autograd function",
        **AB,
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: m.b(_mixing_clone(F.relu(m.a(x)))),
        name="custom operator with a known name",
        **AB,
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x)).view(torch.int32).view(torch.float32)),
        name="seen as another data type",
        **AB,
        private="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x)).half().view(torch.uint8).view(torch.half).float()),
        name="seen as bytes",
        **AB,
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: types.SimpleNamespace(logits=m.b(h := F.relu(m.a(x))), hidden=[h]),
        name="an object with units among its attributes",
        **AB,
        private="",
        watched="a",
    ),
    vectors(_swallows, name="an exception that is caught", **AB, bad=_Bad, private="a"),
    vectors(
        lambda m, x: m.b(F.relu(m.r(F.relu(m.a(x))))),
        name="a module with an activation",
        **AB,
        r=_Reader,
        private="a r.inner",
    ),
    Case(
        "labels of the batch folded in",
        lambda: Net(
            lambda m, x: m.b(torch.relu(m.a(x)).reshape(-1).view(x.shape[0], -1)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)
        ),
        randn(4, 6),
        "a",
        "",
    ),
    Case(
        "two batches put together",
        lambda: Net(
            lambda m, x: m.c(torch.relu(torch.cat([m.a(x), m.b(x)], 0))),
            a=nn.Linear(6, 8),
            b=nn.Linear(6, 8),
            c=nn.Linear(8, 3),
        ),
        randn(4, 6),
        "",
        "",
    ),
]
