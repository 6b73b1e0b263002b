"""More steps of random models: layers of other kinds, and unusual ways to call them; importing this adds them."""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from grammar import LIMIT, operation
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint


def dense(a, rows, **options):
    """Make a layer that reads a tensor and writes rows."""
    return nn.Conv2d(a.shape[1], rows, 1, **options) if a.dim() == 4 else nn.Linear(a.shape[-1], rows, **options)


@operation
def read_again(m, step, a, b, number):
    """A hidden layer, plain: many of these make long chains and branches."""
    z = m.layer(f"plain{step}", lambda: dense(a, 3 + number, bias=number % 3 > 0))(a)
    return F.relu(z) if number % 2 else F.silu(z)


@operation
def spatial_kinds(m, step, a, b, number):
    """Convolutions with strides, dilations, groups, and other paddings."""
    if a.dim() != 4 or min(a.shape[2:]) < 2:
        return None
    c = a.shape[1]
    make = [
        lambda: nn.Conv2d(c, c, 3, padding=1, groups=c),
        lambda: nn.Conv2d(c, 2 * c, 3, padding=1, groups=c),
        lambda: nn.Conv2d(c, 5, 2, stride=2),
        lambda: nn.Conv2d(c, 4, 3, padding=1, padding_mode="circular"),
        lambda: nn.Conv2d(c, 4, 2, padding=1, padding_mode="reflect"),
        lambda: nn.Conv2d(c, 3, 3, padding=2, dilation=2, padding_mode="replicate"),
        lambda: nn.Conv2d(c, 6, (1, 2), groups=3) if c % 3 == 0 else nn.Conv2d(c, 6, (2, 1)),
        lambda: nn.Conv2d(c, 7, tuple(a.shape[2:])),
        lambda: nn.ConvTranspose2d(c, 4, 2, stride=2),
        lambda: nn.ConvTranspose2d(c, 2 * c, 1, groups=c),
    ][number % 10]
    if 2 * c > LIMIT or a[0].numel() > 1024:
        return None
    return F.relu(m.layer(f"spatial{step}", make)(a))


@operation
def lines_and_volumes(m, step, a, b, number):
    """Conv1d over tokens, Conv3d over images."""
    if a.dim() == 3:
        make = [
            lambda: nn.Conv1d(a.shape[1], 4 + number, 1),
            lambda: nn.Conv1d(a.shape[1], a.shape[1], 3, padding=1, groups=a.shape[1]),
            lambda: nn.ConvTranspose1d(a.shape[1], 4, 1),
        ][number % 3]
        return torch.tanh(m.layer(f"line{step}", make)(a))
    if a.dim() == 4 and number % 2:
        return F.relu(m.layer(f"volume{step}", lambda: nn.Conv3d(1, 3, (3, 1, 1), padding=(1, 0, 0)))(a[:, None]))[:, 1]
    return None


@operation
def attend(m, step, a, b, number):
    if a.dim() != 3:
        return None
    width = a.shape[-1]
    heads = 2 if width % 2 == 0 else 1
    if number % 4 == 0:
        return m.layer(f"attention{step}", lambda: nn.MultiheadAttention(width, heads, batch_first=True))(a, a, a)[0]
    if number % 4 == 1 and width <= 24:
        make = partial(nn.TransformerEncoderLayer, width, heads, 6 + number, batch_first=True)
        return m.layer(f"encoder{step}", make)(a)
    q, k, v = (m.layer(f"{name}{step}", lambda: nn.Linear(width, 4)) for name in "qkv")
    if number % 4 == 2:
        return F.scaled_dot_product_attention(q(a), k(a), F.relu(v(a)))
    return torch.softmax(q(a) @ k(a).transpose(1, 2), -1) @ torch.relu(v(a))


@operation
def recur(m, step, a, b, number):
    """One layer again and again: over tokens, over layers, or PyTorch's own recurrent ones."""
    if a.dim() == 4:
        again = m.layer(f"again{step}", lambda: nn.Conv2d(a.shape[1], a.shape[1], 1))
        return F.relu(again(F.relu(again(a))))
    tokens = a if a.dim() == 3 else a[:, None]
    width = tokens.shape[-1]
    if number % 5 == 0:
        return m.layer(f"lstm{step}", lambda: nn.LSTM(width, 5, batch_first=True))(tokens)[0]
    if number % 5 == 1:
        cell, h = m.layer(f"gru{step}", lambda: nn.GRUCell(width, 4)), tokens.new_zeros(len(a), 4)
        for token in tokens.unbind(1)[:4]:
            h = cell(token, h)
        return h
    inner, outer = (
        m.layer(f"{name}{step}", lambda size=size: nn.Linear(size, 4)) for name, size in (("in", width), ("rec", 4))
    )
    if number % 5 == 2:
        h = torch.tanh(inner(tokens[:, 0]))
        for _ in range(2):
            h = torch.tanh(outer(h) + inner(tokens[:, -1]))
        return h
    if number % 5 == 3:
        h = F.relu(inner(tokens[:, 0]))
        return h + F.relu(outer(h))
    same = m.layer(f"same{step}", lambda: nn.Linear(width, width))
    return F.relu(same(tokens)) + F.relu(same(tokens.flip(1)))


@operation
def computed_weight(m, step, a, b, number):
    """Layers whose weight is computed from other parameters, or cut by a mask."""
    kinds = [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: prune.random_unstructured(layer, "weight", amount=0.3),
        lambda layer: _halved(layer),
        lambda layer: parametrizations.weight_norm(layer, dim=None),
        lambda layer: prune.ln_structured(layer, "weight", amount=0.4, n=2, dim=0),
    ]
    return F.relu(m.layer(f"computed{step}", lambda: kinds[number % len(kinds)](dense(a, 6)))(a))


class _Half(nn.Module):
    def forward(self, x):
        return x / 2


def _halved(layer):
    parametrize.register_parametrization(layer, "weight", _Half())
    return layer


@operation
def gate(m, step, a, b, number):
    """Gates, highways, squeeze and excitation, features scaled and shifted."""
    if number % 4 == 0:
        z = m.layer(f"glu{step}", lambda: dense(a, 2 * (3 + number)))(a)
        return F.glu(z, 1 if a.dim() == 4 else -1)
    same = a.shape[1] if a.dim() == 4 else a.shape[-1]
    if number % 4 == 1:
        t = torch.sigmoid(m.layer(f"carry{step}", lambda: dense(a, same))(a))
        return t * F.relu(m.layer(f"high{step}", lambda: dense(a, same))(a)) + (1 - t) * a
    if number % 4 == 2 and a.dim() == 4:
        squeezed = F.relu(m.layer(f"squeeze{step}", lambda: nn.Conv2d(same, 3, 1))(a.mean((2, 3), keepdim=True)))
        return a * torch.sigmoid(m.layer(f"excite{step}", lambda: nn.Conv2d(3, same, 1))(squeezed))
    if b.dim() == 2 and a.dim() in (2, 4):
        film = m.layer(f"film{step}", lambda: nn.Linear(b.shape[1], 2 * same))(b)
        factor, shift = film.view(len(a), 2 * same, *[1] * (a.dim() - 2)).chunk(2, 1)
        return F.relu(a * factor + shift)
    return None


@operation
def called_otherwise(m, step, a, b, number):
    """A layer called by functions that take its weights, in a checkpoint, in a map, or without gradient."""
    layer = m.layer(f"called{step}", lambda: dense(a, 5))
    weight = layer.weight
    read = F.conv2d if a.dim() == 4 else F.linear
    return [
        lambda: F.relu(torch.func.functional_call(layer, dict(layer.named_parameters()), (a,))),
        lambda: F.relu(checkpoint(layer, a, use_reentrant=False)),
        lambda: F.relu(read(a, weight, layer.bias)),
        lambda: F.relu(read(a, weight[:3])),
        lambda: F.relu(read(a, torch.cat([weight[:2], weight[2:]]))),
        lambda: F.relu(read(a, weight * 0.5 + 1)) + layer.bias.sum(),
        lambda: F.relu(layer(a)) + weight.mean(),
        lambda: torch.relu(layer(a)).requires_grad_(True),
        lambda: F.relu(copy.copy(layer)(a)),
        lambda: F.relu(torch.vmap(layer)(a)),
        lambda: F.relu(read(a, weight.to(torch.float64).float(), layer.bias)),
        lambda: F.relu(read(a[:, :-1], weight[:, :-1])) if a.dim() == 4 and a.shape[1] > 1 else None,
    ][number % 12]()


@operation
def einstein(m, step, a, b, number):
    """Products with weights written as sums over letters."""
    if a.dim() == 4:
        layer = m.layer(f"letters{step}", lambda: nn.Conv2d(a.shape[1], 5, 1))
        return F.relu(torch.einsum("bchw,oc->bohw", a, layer.weight[:, :, 0, 0]))
    layer = m.layer(f"letters{step}", lambda: nn.Linear(a.shape[-1], 5))
    letters = "bti" if a.dim() == 3 else "bi"
    if number % 3 == 0:
        return F.relu(torch.einsum(f"{letters},oi->{letters[:-1]}o", a, layer.weight))
    if number % 3 == 1:
        return F.relu(torch.tensordot(a, layer.weight, dims=([a.dim() - 1], [1])) + layer.bias)
    return F.relu(torch.matmul(a, layer.weight.t()))


@operation
def normalise_otherwise(m, step, a, b, number):
    c = a.shape[1]
    batch = nn.BatchNorm2d if a.dim() == 4 else nn.BatchNorm1d
    make = [
        lambda: nn.GroupNorm(1, c),
        lambda: nn.GroupNorm(c, c) if a[0, 0].numel() > 1 else nn.GroupNorm(1, c),
        lambda: nn.RMSNorm(a.shape[-1]),
        lambda: batch(c, affine=False),
        lambda: batch(c, track_running_stats=False),
        lambda: batch(c, momentum=None),
        lambda: nn.LayerNorm(a.shape[1:], bias=False),
        lambda: nn.LocalResponseNorm(2) if a.dim() > 2 else nn.LayerNorm(c, elementwise_affine=False),
    ][number % 8]
    return m.layer(f"othernorm{step}", make)(a)


@operation
def hooked(m, step, a, b, number):
    """A hidden layer with a hook of the user's that changes what goes in or comes out."""
    layer = m.layer(f"hooked{step}", lambda: dense(a, 5))
    if m.building:
        [
            lambda: layer.register_forward_hook(lambda module, args, output: output.relu()),
            lambda: layer.register_forward_hook(lambda module, args, output: output.roll(1, 1).relu()),
            lambda: layer.register_forward_pre_hook(lambda module, args: (args[0].flip(1),)),
        ][number % 3]()
    return F.relu(layer(a))


@operation
def one_activation_for_all(m, step, a, b, number):
    """An activation module that many layers share, its parameter too."""
    activation = m.layer("shared", nn.PReLU if number % 2 else nn.ELU)
    return activation(m.layer(f"before_shared{step}", lambda: dense(a, 4 + number % 3))(a))


@operation
def sequence(m, step, a, b, number):
    """Blocks of modules, with a residual connection or without."""
    same = a.shape[1] if a.dim() == 4 else a.shape[-1]
    make = [
        lambda: nn.Sequential(dense(a, 6), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Identity()),
        lambda: nn.Sequential(dense(a, same), nn.GELU(), *([nn.Conv2d(same, same, 1)] if a.dim() == 4 else [])),
        lambda: nn.Sequential(nn.ReLU(), dense(a, same), nn.AlphaDropout(0.1), nn.Softplus()),
    ][number % 3]
    block = m.layer(f"block{step}", make)(a)
    return a + block if number % 2 and block.shape == a.shape else block


@operation
def bilinear(m, step, a, b, number):
    if a.dim() != 2 or b.dim() != 2:
        return None
    if number % 2:
        return F.relu(m.layer(f"bilinear{step}", lambda: nn.Bilinear(a.shape[1], b.shape[1], 4))(a, b))
    return (a[:, :, None] * b[:, None, :5]).flatten(1)[:, :LIMIT]
