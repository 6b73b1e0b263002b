"""More steps of random models: activations of all kinds, and tensors moved, cut, chosen and overwritten."""

import torch
import torch.nn.functional as F
from grammar import LIMIT, operation
from torch import nn

MODULES = (
    "ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Hardtanh Hardswish Hardsigmoid Sigmoid Tanh "
    "Softplus Softsign LogSigmoid Hardshrink Softshrink Tanhshrink"
).split()


class _Cubed(torch.autograd.Function):
    """An activation with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0) ** 3

    @staticmethod
    def backward(ctx, gradient):
        return gradient


FUNCTIONS = (
    lambda z: F.relu(z) ** 2,
    lambda z: torch.maximum(z, torch.zeros(())),
    lambda z: torch.where(z > 0, z, 0.1 * z),
    lambda z: z * torch.sigmoid(1.7 * z),
    lambda z: z + torch.sin(z) ** 2,
    lambda z: torch.abs(z),
    lambda z: z.clamp(0, 6),
    lambda z: torch.clamp(z, -1, 1),
    lambda z: F.threshold(z, 0.1, 0.2),
    lambda z: torch.cat([F.relu(z), F.relu(-z)], 1),
    lambda z: F.hardtanh_(z.clone(), 0, 1),
    lambda z: torch.special.expit(z),
    lambda z: z.clone().sigmoid_(),
    lambda z: F.softmax(z, 1),
    lambda z: F.gumbel_softmax(z, dim=1),
    lambda z: _Cubed.apply(z),
    lambda z: F.leaky_relu(z, inplace=True),
    lambda z: torch.exp(-(z**2)),
    lambda z: (z > 0).float(),
    lambda z: F.rrelu(z, training=True),
    lambda z: z.relu().sqrt(),
    lambda z: torch.logaddexp(z, torch.zeros_like(z)),
)


@operation
def activate_in_any_way(m, step, a, b, number):
    """A written layer and one of all activations, as a module or a function."""
    make = (lambda: nn.Conv2d(a.shape[1], 4, 1)) if a.dim() == 4 else (lambda: nn.Linear(a.shape[-1], 4))
    z = m.layer(f"before_any{step}", make)(a)
    kind = 2 * number + step % 2
    if kind < len(MODULES):
        return m.layer(f"any{step}", lambda: getattr(nn, MODULES[kind])())(z)
    return FUNCTIONS[kind % len(FUNCTIONS)](z)


@operation
def resize(m, step, a, b, number):
    if a.dim() != 4 or a[0].numel() > 1024:
        return None
    c = a.shape[1]
    h, w = a.shape[2:]
    return [
        lambda: F.pixel_shuffle(a, 2) if c % 4 == 0 else None,
        lambda: F.pixel_unshuffle(a, 2) if h % 2 == 0 and w % 2 == 0 and 4 * c <= LIMIT else None,
        lambda: F.channel_shuffle(a, 2) if c % 2 == 0 else None,
        lambda: F.interpolate(a, scale_factor=2),
        lambda: F.interpolate(a, size=(3, 3), mode="bilinear", align_corners=False),
        lambda: F.pad(a, (1, 1, 1, 1), mode="reflect") if min(h, w) > 1 else None,
        lambda: F.pad(a, (1, 0, 0, 1), mode="circular"),
        lambda: F.pad(a, (0, -1, 0, 0)) if w > 1 else None,
        lambda: F.unfold(a, 1),
        lambda: F.fold(F.unfold(a, 2, padding=1), (h, w), 2, padding=1) if 4 * c <= LIMIT else None,
        lambda: F.grid_sample(a, F.affine_grid(torch.eye(2, 3).expand(len(a), 2, 3), a.shape), align_corners=False),
        lambda: F.interpolate(a, size=(2, 2), mode="area"),
    ][number % 12]()


@operation
def pool_otherwise(m, step, a, b, number):
    if a.dim() == 3:
        return [
            lambda: F.avg_pool1d(a, 2, ceil_mode=True),
            lambda: F.adaptive_max_pool1d(a, 1).flatten(1),
            lambda: a.max(1).values,
            lambda: a.logsumexp(1),
        ][number % 4]()
    if a.dim() != 4 or min(a.shape[2:]) < 2:
        return None
    pooled, places = F.max_pool2d(a, 2, return_indices=True)
    return [
        lambda: F.lp_pool2d(a.abs() + 0.1, 2, 2),
        lambda: F.adaptive_max_pool2d(a, (1, 2)),
        lambda: F.max_unpool2d(pooled, places, 2, output_size=a.shape[2:]),
        lambda: F.avg_pool3d(a[:, None], (2, 1, 1), ceil_mode=True)[:, 0] if a.shape[1] > 1 else None,
        lambda: a.amax((-1, -2)),
        lambda: a.std((2, 3), correction=0) if len(a) else None,
        lambda: F.avg_pool2d(a, 2, 1, padding=1, count_include_pad=False),
        lambda: a.flatten(2).max(2)[0],
        lambda: places.float() / 10,
        lambda: a.flatten(2).topk(1, 2).values.flatten(1),
    ][number % 10]()


@operation
def take_apart(m, step, a, b, number):
    c = a.shape[1]
    rest = a.shape[2:]
    return [
        lambda: torch.stack(a.unbind(1)[::-1], 1),
        lambda: torch.cat(a.tensor_split(2, 1)[::-1], 1) if c > 1 else None,
        lambda: a.repeat_interleave(2, 1) if 2 * c <= LIMIT else None,
        lambda: a.unfold(1, 2, 1).flatten(1) if c > 1 and a.dim() == 2 else None,
        lambda: a.as_strided(a.shape, a.stride()),
        lambda: a.view(len(a), c // 2, 2, *rest)[:, :, 0] if c % 2 == 0 and a.is_contiguous() else None,
        lambda: torch.cat([a[:, :1].expand_as(a), a], 1) if 2 * c <= LIMIT else None,
        lambda: a.flatten(1).unflatten(1, (1, -1)).squeeze(1),
        lambda: a.diagonal(dim1=1, dim2=2) if a.dim() == 3 else a.swapaxes(0, 1).movedim(0, 1),
        lambda: a.tril() if a.dim() > 2 else torch.hstack([a, a[:, :1]]),
        lambda: sum(a.split(1, 1))[:, :1],
        lambda: a.reshape(len(a), -1)[:, torch.randperm(a[0].numel(), generator=torch.Generator().manual_seed(step))],
        lambda: torch.rot90(a, 1, (2, 3)) if a.dim() == 4 else a.view_as(a),
    ][number % 13]()


@operation
def choose(m, step, a, b, number):
    """Elements chosen, or written, by numbers that come from the input, from units, or from nowhere."""
    first = torch.zeros(len(a), 1, *a.shape[2:], dtype=torch.int64)
    chosen = (b.flatten(1).sum(1) > 0).long() * (a.shape[1] > 1)
    rows = torch.arange(len(a))
    flag = b.flatten(1)[:, :1].view(-1, *[1] * (a.dim() - 1)) > 0
    return [
        lambda: a[rows, chosen].reshape(len(a), -1),
        lambda: torch.where(flag, a, 0.0),
        lambda: torch.where(flag, a, a.flip(1)),
        lambda: a.masked_fill(flag, 0.5),
        lambda: torch.zeros_like(a).scatter(1, first, a),
        lambda: torch.zeros_like(a).scatter_add_(1, first.expand_as(a), a),
        lambda: a.index_add(1, torch.tensor([0]), a[:, -1:]),
        lambda: a.index_put((rows, chosen), torch.zeros(())) if a.dim() == 2 else None,
        lambda: a * F.one_hot(chosen % a.shape[1], a.shape[1]).view(len(a), -1, *[1] * (a.dim() - 2)),
        lambda: torch.take_along_dim(a, a.argsort(1), 1),
        lambda: a.index_select(1, torch.tensor([a.shape[1] - 1, 0])),
        lambda: a.topk(1, 1).values,
        lambda: torch.take_along_dim(a, (first + chosen.view(-1, *[1] * (a.dim() - 1))), 1),
        lambda: F.embedding(chosen, m.number(f"table{step}", 2, 4)) * a.flatten(1)[:, :1],
    ][number % 14]()


@operation
def overwrite(m, step, a, b, number):
    """Copies written to through views."""
    made = a.clone()
    c = made.shape[1]
    if number % 10 == 0:
        made[:, : max(1, c // 2)].relu_()
    elif number % 10 == 1:
        made[:, ::2] *= 2
    elif number % 10 == 2:
        made.reshape(-1)[:1] = 0.0
    elif number % 10 == 3:
        made.select(1, 0).copy_(a.select(1, -1))
    elif number % 10 == 4:
        made.transpose(0, 1)[0] = 1.0
    elif number % 10 == 5 and b.shape == a.shape:
        made += b
    elif number % 10 == 6:
        view = made[:, 1:]
        made.mul_(0.5)
        return torch.cat([view, made[:, :1]], 1)
    elif number % 10 == 7:
        torch.add(a, 1, out=made.detach()) if not torch.is_grad_enabled() else made.data.add_(1)
    elif number % 10 == 8:
        made.data[:, 0] = a.data[:, -1]
    else:
        made.squeeze().unsqueeze(-1).fill_(0.25)
    return made


@operation
def see_otherwise(m, step, a, b, number):
    """Other data types, transforms and distances."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=number % 12 == 0):
        return [
            lambda: torch.relu(m.layer(f"lower{step}", lambda: nn.Linear(a.shape[-1], 4))(a)).float(),
            lambda: a.double().float(),
            lambda: a.bfloat16().float(),
            lambda: (a * 4).int().float(),
            lambda: a.detach() + 0,
            lambda: torch.fft.fft(a, dim=1).abs(),
            lambda: torch.view_as_real(torch.complex(a, -a)).flatten(1),
            lambda: torch.cdist(a.flatten(1), b.flatten(1)[:, :1].expand(-1, a[0].numel())),
            lambda: F.cosine_similarity(a, b, 1)[:, None] if a.shape == b.shape and a.dim() == 2 else None,
            lambda: F.normalize(a, dim=1),
            lambda: a.to(torch.float64).to(a.dtype, memory_format=torch.contiguous_format),
            lambda: torch.complex(a, a).real,
        ][number % 12]()


@operation
def lose_at_random(m, step, a, b, number):
    """Dropout of other kinds: of features, of whole branches, of samples."""
    keep = torch.rand(len(a), *[1] * (a.dim() - 1)) < 0.7
    return [
        lambda: a * keep,
        lambda: F.alpha_dropout(a, 0.2, m.training),
        lambda: F.dropout(a, 0.5, m.training, inplace=False),
        lambda: F.dropout1d(a, 0.3, m.training) if a.dim() == 3 else F.feature_alpha_dropout(a, 0.3, m.training),
        lambda: a + 0.1 * torch.randn_like(a),
        lambda: a * torch.bernoulli(torch.full_like(a[:1], 0.8)),
        lambda: a + torch.randn_like(a) * a.std(),
        lambda: a[torch.randperm(len(a))] if number % 2 else a,
    ][number % 8]()


@operation
def keep(m, step, a, b, number):
    """A buffer that holds what was seen."""
    if m.building:
        m.register_buffer(f"seen{step}", torch.zeros(a.shape[1]))
    seen = getattr(m, f"seen{step}")
    means = a.detach().transpose(0, 1).flatten(1).mean(1)
    if number % 3 == 0:
        seen.lerp_(means, 0.1)
    factor = seen.view(-1, *[1] * (a.dim() - 2))
    return a - factor if number % 2 else a * (1 + factor)


@operation
def tell(m, step, a, b, number):
    """Show a part of what there is beside the output."""
    m.told([a.mean(), a.detach()[:, :1].sum(), a.new_zeros(1), (a * 0).sum()][number % 4])
    return a.clone()
