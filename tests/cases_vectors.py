"""Hand-written models of vectors: ordinary ways to put layers together, each with what is private in it."""

import torch
import torch.nn.functional as F
from cases import vectors
from torch import nn


def crelu(m, x):
    z = m.a(x)
    return m.b(torch.cat([F.relu(z), F.relu(-z)], 1))


def swish_by_hand(m, x):
    z = m.a(x)
    return m.b(z * torch.sigmoid(z))


def attention_by_hand(m, x):
    h = torch.relu(m.body(x))
    q, k, v = m.q(h), m.k(h), m.v(h)
    weights = torch.softmax(q @ k.transpose(-1, -2), -1)
    return m.out(torch.relu(m.mix(weights @ v)))


VECTORS = [
    vectors(
        lambda m, x: m.b(F.relu(z := m.a(x))) + m.c(z),
        name="read before the activation, too",
        a=(6, 8),
        b=(8, 3),
        c=(8, 3),
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(z := m.a(x))) + z.mean(1, keepdim=True),
        name="seen before the activation, too",
        a=(6, 8),
        b=(8, 3),
        private="",
        watched="a",
    ),
    vectors(lambda m, x: m.b(F.relu(m.a(x))), name="F.relu", a=(6, 8), b=(8, 3), private="a"),
    vectors(lambda m, x: m.b(torch.relu(m.a(x))), name="torch.relu", a=(6, 8), b=(8, 3), private="a"),
    vectors(lambda m, x: m.b(m.a(x).relu_()), name="relu_", a=(6, 8), b=(8, 3), private="a"),
    vectors(lambda m, x: m.b(F.relu(m.a(x), inplace=True)), name="in place", a=(6, 8), b=(8, 3), private="a"),
    vectors(lambda m, x: m.b(F.relu(input=m.a(input=x))), name="by keyword", a=(6, 8), b=(8, 3), private="a"),
    vectors(lambda m, x: m.b(m.a(x).clamp(min=0)), name="clamp", a=(6, 8), b=(8, 3), private="a"),
    vectors(lambda m, x: m.b(m.a(x).clip(0)), name="clip", a=(6, 8), b=(8, 3), private="a"),
    vectors(lambda m, x: m.b(m.a(x)), name="no activation", a=(6, 8), b=(8, 3), private=""),
    vectors(lambda m, x: torch.relu(m.a(x)), name="no reader", a=(6, 8), private="", watched="a"),
    vectors(lambda m, x: m.b(F.relu(m.a(x))), name="one unit", a=(6, 1), b=(1, 3), private="a"),
    vectors(lambda m, x: m.b(F.relu(m.a(x))), name="one by one", shape=(4, 1), a=(1, 1), b=(1, 1), private="a"),
    vectors(lambda m, x: m.b(F.relu(m.a(x))), name="tokens", shape=(2, 5, 6), a=(6, 8), b=(8, 3), private="a"),
    vectors(lambda m, x: m.b(F.relu(m.a(x))), name="4-D Linear", shape=(2, 3, 4, 6), a=(6, 8), b=(8, 3), private="a"),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x.transpose(1, 2))).transpose(1, 2).mean(2)),
        name="tokens turned round and averaged",
        shape=(2, 6, 5),
        a=(6, 8),
        b=(8, 3),
        private="a",
    ),
    vectors(
        lambda m, x: (m.b(F.relu(m.a(x))), m.c(F.relu(m.a2(x))), m.d(F.relu(m.a2(x)))),
        name="a layer called twice",
        a=(6, 8),
        a2=(6, 7),
        b=(8, 3),
        c=(7, 2),
        d=(7, 4),
        private="a",
        watched="a2 a2#2",
    ),
    vectors(
        lambda m, x: {"b": m.b(h := F.relu(m.a(x))), "c": [m.c(h), m.d(h)]},
        name="one unit, several readers, outputs in containers",
        a=(6, 8),
        b=(8, 3),
        c=(8, 2),
        d=(8, 1),
        private="a",
    ),
    vectors(
        lambda m, x: {"logits": m.b(h := F.relu(m.a(x))), "features": h},
        name="units among the outputs",
        a=(6, 8),
        b=(8, 3),
        private="",
        watched="a",
    ),
    vectors(crelu, name="CReLU", a=(6, 8), b=(16, 3), private="", watched="a a#2"),
    vectors(
        lambda m, x: m.b(F.relu(torch.cat([z := m.a(x), -z], 1))),
        name="CReLU as one activation",
        a=(6, 8),
        b=(16, 3),
        private="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(torch.cat([z := m.a(x), -z[:, :3]], 1))),
        name="some units activated twice",
        a=(6, 8),
        b=(11, 3),
        private="",
    ),
    vectors(swish_by_hand, name="swish by hand", a=(6, 8), b=(8, 3), private="", watched="a"),
    vectors(
        lambda m, x: m.out(F.silu(m.gate(x)) * m.up(x)),
        name="SwiGLU",
        gate=(6, 8),
        up=(6, 8),
        out=(8, 3),
        private="",
        watched="gate",
    ),
    vectors(lambda m, x: m.b(F.glu(m.a(x))), name="GLU", a=(6, 8), b=(4, 3), private=""),
    vectors(
        lambda m, x: m.out(torch.tanh(m.a(x)) * torch.sigmoid(m.g(x))),
        name="gated by a sigmoid",
        a=(6, 8),
        g=(6, 8),
        out=(8, 3),
        private="",
        watched="a g",
    ),
    vectors(
        lambda m, x: m.c(torch.cat([F.relu(m.a(x)), x, torch.tanh(m.b(x))], 1)),
        name="concatenation",
        a=(6, 8),
        b=(6, 4),
        c=(18, 3),
        private="a b",
    ),
    vectors(
        lambda m, x: m.b(h[:, :5] if (h := F.relu(m.a(x))) is not None else x) + m.c(h[:, 3:]),
        name="channels sliced to different readers",
        a=(6, 8),
        b=(5, 3),
        c=(5, 3),
        private="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x)).flip(1)[:, [0, 2, 4, 6, 1, 3, 5, 7]]),
        name="channels in another order",
        a=(6, 8),
        b=(8, 3),
        private="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x)).repeat(1, 2)),
        name="channels repeated",
        a=(6, 8),
        b=(16, 3),
        private="a",
    ),
    vectors(lambda m, x: m.b(F.relu(m.a(x)) + x), name="residual input", a=(6, 6), b=(6, 3), private="", watched="a"),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x)) + F.softmax(x, 1)),
        name="residual mixture",
        a=(6, 6),
        b=(6, 3),
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: m.c(torch.cat([F.relu(m.a(x)), x], 1) + F.pad(F.relu(m.b(x)), (0, 6))),
        name="added to a concatenation",
        a=(6, 6),
        b=(6, 6),
        c=(12, 3),
        private="",
        watched="a b",
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x)) * torch.sigmoid(x)), name="scaled by the input", a=(6, 6), b=(6, 3), private="a"
    ),
    vectors(
        lambda m, x: m.b(torch.cat([F.relu(m.a(x)), x], 1)), name="beside the input", a=(6, 6), b=(12, 3), private="a"
    ),
    vectors(
        lambda m, x: m.c((h := F.relu(m.a(x))) + F.relu(m.b(h))),
        name="residual",
        a=(6, 8),
        b=(8, 8),
        c=(8, 3),
        private="",
        watched="a b",
    ),
    vectors(lambda m, x: m.c(F.relu(m.a(x) + m.b(x))), name="summed before", a=(6, 8), b=(6, 8), c=(8, 3), private="a"),
    vectors(lambda m, x: m.b(m.drop(F.relu(m.a(x)))), name="dropout", a=(6, 8), b=(8, 3), drop=nn.Dropout, private="a"),
    *(
        vectors(
            forward,
            name=f"{kind.__name__} {where}",
            a=(6, 8),
            b=(8, 3),
            norm=lambda kind=kind: kind(8),
            private="",
            watched="a",
        )
        for kind in (nn.LayerNorm, nn.RMSNorm)
        for where, forward in (
            ("after", lambda m, x: m.b(m.norm(F.relu(m.a(x))))),
            ("before", lambda m, x: m.b(F.relu(m.norm(m.a(x))))),
        )
    ),
    vectors(
        lambda m, x: m.b(m.norm(F.relu(m.a(x)))),
        name="BatchNorm after",
        a=(6, 8),
        b=(8, 3),
        norm=lambda: nn.BatchNorm1d(8),
        private="a",
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.norm(m.a(x)))),
        name="BatchNorm without statistics",
        a=(6, 8),
        b=(8, 3),
        norm=lambda: nn.BatchNorm1d(8, track_running_stats=False),
        private="a",
    ),
    vectors(
        attention_by_hand,
        name="attention by hand",
        shape=(2, 5, 6),
        body=(6, 8),
        q=(8, 8),
        k=(8, 8),
        v=(8, 8),
        mix=(8, 8),
        out=(8, 3),
        private="body mix",
    ),
    vectors(
        lambda m, x: m.out(F.relu(m.b(F.log_softmax(m.a(x), 1)))),
        name="softmax in between",
        a=(6, 8),
        b=(8, 7),
        out=(7, 3),
        private="b",
    ),
    vectors(
        lambda m, x: m.b(F.relu(m.a(x)) @ torch.eye(8)),
        name="another matrix product",
        a=(6, 8),
        b=(8, 3),
        private="",
        watched="a",
    ),
    vectors(
        lambda m, x: m.out(m.mid(torch.relu(m.a(x)), torch.relu(m.b(x)))),
        name="Bilinear",
        a=(6, 4),
        b=(6, 5),
        mid=lambda: nn.Bilinear(4, 5, 6),
        out=(6, 3),
        private="",
        watched="a b",
    ),
    vectors(
        lambda m, x: m.out(F.relu(m.fc(m.rnn(F.relu(m.a(x)))[0][:, -1]))),
        name="LSTM",
        shape=(2, 5, 6),
        a=(6, 4),
        rnn=lambda: nn.LSTM(4, 7, batch_first=True),
        fc=(7, 5),
        out=(5, 3),
        private="fc",
        watched="a",
    ),
    vectors(
        lambda m, x: m.fc(m.encoder(torch.relu(m.a(x)))),
        name="TransformerEncoderLayer",
        shape=(2, 5, 6),
        a=(6, 4),
        encoder=lambda: nn.TransformerEncoderLayer(4, 2, 10, batch_first=True, dropout=0.3),
        fc=(4, 3),
        private="encoder.linear1",
        watched="a",
    ),
    vectors(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)).unflatten(1, (4, 2)).flatten(1)))),
        name="reshaped and back",
        a=(6, 8),
        b=(8, 4),
        c=(4, 2),
        private="a b",
    ),
]
