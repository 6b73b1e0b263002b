"""Hand-written models that use weights in other ways than one plain layer for each."""

import torch
import torch.nn.functional as F
from cases import Case, Net, made, vectors
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, vector_to_parameters

AB = {"a": (6, 8), "b": (8, 3)}
ABC = {"a": (6, 8), "b": (6, 8), "c": (8, 3)}


def _dynamic_filter(m, x):
    h = torch.relu(m.a(x))
    weight = h[0].view(2, 1, 4)
    return F.conv1d(x[:, None], weight).flatten(1).sum(1, keepdim=True) + m.b(h)


def _dynamic_bias(m, x):
    h = torch.relu(m.a(x))
    return F.conv1d(x[:, None], m.kernel, h[0, :2]).flatten(1).sum(1, keepdim=True) + m.b(h)


def _dynamic_linear(m, x):
    h = torch.relu(m.a(x))
    return F.linear(x, h[:, :6]).mean() + m.b(h)


def _own_parameter(m, x):
    return F.linear(F.relu(m.a(x)), m.w) + m.b(F.relu(m.c(x)))


def _some_heads(m, x):
    h = F.relu(m.a(x))
    out = torch.zeros(len(x), 2)
    for task in range(2):
        mask = x[:, 0] > 0 if task else x[:, 0] <= 0
        out[mask] = m.heads[str(task)](h[mask])
    return out


def _shared_norm():
    return Net(
        lambda m, x: m.c(torch.cat([F.relu(m.norm(m.a(x))), F.relu(m.norm(m.b(x)))], 1)),
        a=nn.Linear(6, 8),
        b=nn.Linear(6, 8),
        norm=nn.BatchNorm1d(8),
        c=nn.Linear(16, 3),
    )


def _tied():
    model = Net(lambda m, x: m.d(F.relu(m.a(x))), a=nn.Linear(6, 8), d=nn.Linear(8, 8))
    model.e = nn.Linear(8, 8)
    model.e.weight = model.d.weight
    model.function = lambda m, x: m.out(F.relu(m.d(F.relu(m.a(x)))) + F.relu(m.e(x @ torch.ones(6, 8))))
    model.out = nn.Linear(8, 2)
    return model


def _tied_to_a_layer_that_is_not_run():
    model = Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 8))
    model.c = nn.Linear(8, 8, bias=False)
    model.c.weight = model.b.weight
    return model


def _same_module_twice():
    a, b = nn.Linear(6, 8), nn.Linear(8, 3)
    model = nn.Sequential(a, nn.ReLU(), b)
    model.register_module("first", a)
    return Net(lambda m, x: m.net(x), first=a, net=nn.Sequential(a, nn.ReLU(), b))


def _flattened():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    vector_to_parameters(parameters_to_vector(model.parameters()), model.parameters())
    return model


def _overlapping():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    model.append(nn.Linear(4, 2))
    model[4].weight = nn.Parameter(model[2].weight.data[:, :4])
    return model


def _normed():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 8)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(8, 7)),
        nn.ReLU(),
        nn.Linear(7, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )


def _graph():
    rows = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 0]])
    model = Net(lambda m, x: m.b(torch.sparse.mm(m.adjacency, F.relu(m.a(x)))), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    model.register_buffer("adjacency", torch.sparse_coo_tensor(rows, torch.ones(5), (4, 4)))
    return model


def _functional_norm():
    model = Net(
        lambda m, x: m.b(F.relu(F.batch_norm(m.a(x), m.mean, m.var, m.scale, m.shift))),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 3),
        scale=nn.Parameter(torch.rand(8)),
        shift=nn.Parameter(torch.randn(8)),
    )
    model.register_buffer("mean", torch.randn(8))
    model.register_buffer("var", torch.rand(8) + 0.5)
    return model


WEIGHTS = [
    vectors(
        lambda m, x: (m.b(F.relu(m.a(x))), m.a.weight[:2]),
        name="a weight among the outputs",
        **AB,
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu((z := m.a(x)) + z.flip(1))),
        name="one row for several units",
        **AB,
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu((z := m.a(x))[:, :4] + z[:, 4:])),
        name="several rows for one unit",
        a=(6, 8),
        b=(4, 3),
        private="a",
    ),
    vectors(
        lambda m, x: m.c(F.relu((m.a(x)[:, :, None] + m.b(x)[:, None]).flatten(1))),
        name="all pairs of rows",
        a=(6, 3),
        b=(6, 4),
        c=(12, 2),
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: m.c(F.relu(torch.cat([m.a(x), m.b(x)], 1))),
        name="concatenated before the activation",
        a=(6, 8),
        b=(6, 4),
        c=(12, 3),
        private="a",
    ),
    vectors(
        lambda m, x: m.c(F.relu(torch.cat([m.a(x), x], 1))),
        name="concatenated with the input before the activation",
        a=(6, 8),
        c=(14, 3),
        private="",
        watched="a",
    ),
    vectors(_dynamic_filter, name="units as filters", **AB, private="", watched="a"),
    vectors(
        _dynamic_bias,
        name="units as bias",
        **AB,
        kernel=lambda: nn.Parameter(torch.randn(2, 1, 3)),
        private="",
        watched="a",
    ),
    vectors(_dynamic_linear, name="units as weights", shape=(6, 6), **AB, private="", watched="a"),
    vectors(
        _own_parameter,
        name="a parameter of one's own reads",
        a=(6, 8),
        w=lambda: nn.Parameter(torch.randn(3, 8)),
        c=(6, 8),
        b=(8, 3),
        private="c",
        watched="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x))) + m.a.bias.sum(), name="the bias is used again", **AB, private="", watched="a"
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x))) + m.a.weight[:3].norm(),
        name="the weight is used again",
        **AB,
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x))) + F.linear(x, m.a.weight.flip(1)).mean(),
        name="a rearranged weight is used again",
        **AB,
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x))) + F.linear(x, m.a.weight[:5].clone()).mean(),
        name="a part of the weight is used again",
        **AB,
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x))) + F.linear(x, m.a.weight.clone()).mean(),
        name="a copy of the weight is used again",
        **AB,
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: F.relu(m.a(x)) @ m.a.weight + m.b(F.relu(m.c(x))).mean(),
        name="decoder with the encoder's weight",
        a=(6, 8),
        c=(6, 8),
        b=(8, 3),
        private="c",
        watched="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(F.linear(x, m.a.weight, m.a.bias))), name="a layer used by function", **AB, private="a"
    ),
    vectors(
        lambda m, x: F.conv1d(F.relu(m.a(x))[:, :, None], m.c.weight, m.c.bias, groups=2).sum(),
        name="a convolution used with other groups",
        a=(6, 8),
        c=lambda: nn.Conv1d(4, 6, 1),
        private="",
        watched="a",
    ),
    vectors(
        _some_heads,
        name="heads of a user's own",
        shape=(8, 6),
        a=(6, 8),
        heads=lambda: nn.ModuleDict({"0": nn.Linear(8, 2), "1": nn.Linear(8, 2)}),
        private="a",
    ),
    Case(
        "heads of a user's own, one of them on no samples",
        lambda: Net(
            _some_heads,
            a=nn.Linear(6, 8),
            heads=nn.ModuleDict({"0": nn.Linear(8, 2), "1": nn.Linear(8, 2)}),
        ),
        lambda: [(torch.rand(4, 6),), (torch.randn(4, 6),)],
        private="",
        watched="a",
    ),
    vectors(lambda m, x: m.b(F.relu(m.a(x))), name="a layer that is not used", **AB, c=(8, 3), private="", watched="a"),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x))),
        name="a parameter that is not used",
        **AB,
        c=lambda: nn.Parameter(torch.randn(8)),
        private="",
        watched="a",
    ),
    made(_shared_norm, name="a shared BatchNorm", private="", watched="a b"),
    made(
        lambda: Net(
            lambda m, x: m.c(torch.cat([F.relu(m.norm(m.a(x))), F.relu(m.norm(m.b(x)))], 1)),
            a=nn.Linear(6, 8),
            b=nn.Linear(6, 8),
            norm=nn.BatchNorm1d(8, affine=False),
            c=nn.Linear(16, 3),
        ),
        name="a shared BatchNorm without parameters",
        private="",
        watched="a b",
    ),
    made(_functional_norm, name="a normaliser by function", private="a"),
    made(_tied_to_a_layer_that_is_not_run, name="tied to a layer that is not run", private="", watched="a"),
    made(_tied, name="tied weights", private="", watched="a d e"),
    made(_same_module_twice, name="a module under two names", private="first", watched=""),
    made(_flattened, name="parameters in one piece of memory", private="0", watched=""),
    made(_overlapping, name="parameters that overlap", private="", watched="0 2 4"),
    made(_normed, name="parametrised weights", private="4", watched="0 2"),
    made(_graph, name="sparse matrix", private="", watched="a"),
]
