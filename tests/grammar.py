"""Random models: programs of layers and tensor operations that hypothesis draws and makes smaller."""

import torch
import torch.nn.functional as F
from torch import nn

OPERATIONS = []
LIMIT = 96
"""Largest number of channels or features that a step may make."""


def operation(function):
    """Register a step: a function of the model, the number of the step, two tensors and a small number."""
    OPERATIONS.append(function)
    return function


class Program(nn.Module):
    """Runs its steps on a growing list of tensors; layers are made when a step first needs them.

    A step is (operation, first tensor, second tensor, number), each taken modulo what there is, so that any numbers
    are a model. A step that does not fit its tensors does nothing.

    Args:
        steps: What to do.
        example: Positional inputs, with which it is found out which steps fit.
    """

    def __init__(self, steps, *example):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleDict()
        self.numbers = nn.ParameterDict()
        self.known = {}
        self.done = []
        self.building = True
        with torch.no_grad():
            self(*(x.clone() for x in example))
        self.building = False

    def layer(self, key, make):
        """Return the layer of a step."""
        if key not in self.layers and self.building:
            self.layers[key] = make()
        return self.layers[key]

    def earlier(self, step):
        """Return the layers that there were when the model was made up to a step."""
        if self.building:
            self.known[step] = list(self.layers)
        return [self.layers[key] for key in self.known[step]]

    def number(self, key, *shape):
        """Return the parameter of a step."""
        if key not in self.numbers and self.building:
            self.numbers[key] = nn.Parameter(torch.randn(shape))
        return self.numbers[key]

    @staticmethod
    def _fits(result, samples):
        return (
            result is not None
            and result.is_floating_point()
            and result.dim() >= 2
            and result.shape[0] == samples
            and 0 < result[0].numel() <= 4096
            and bool(result.abs().max() < 1000)
        )

    def forward(self, *inputs):
        """Run all steps, then read what no step has read; returns what that gives, and what steps told beside."""
        pool, told, unread = list(inputs), [], set()
        self.told = told.append
        for step, (which, first, second, number) in enumerate(self.steps):
            if not self.building and not self.done[step]:
                continue
            chosen = OPERATIONS[which % len(OPERATIONS)]
            places = [len(pool) - 1 - first % min(len(pool), 3), len(pool) - 1 - second % min(len(pool), 5)]
            before = {*self.layers, *self.numbers}
            result = chosen(self, step, pool[places[0]], pool[places[1]], number)
            if self.building:
                self.done.append(self._fits(result, len(inputs[0])))
                if not self.done[-1]:
                    for made in (self.layers, self.numbers):
                        for key in made.keys() - before:
                            del made[key]
            if self.done[step]:
                unread = {*unread.difference(places), len(pool)}
                pool.append(result)
        del self.told
        ends = {f"end{place}": pool[place].flatten(1) for place in sorted(unread or {0})}
        read = [self.layer(key, lambda end=end: nn.Linear(end.shape[1], 3))(end) for key, end in ends.items()]
        return {"ends": read, "told": told}


def _dense(m, key, a, rows, **kwargs):
    if a.dim() == 4:
        return m.layer(key, lambda: nn.Conv2d(a.shape[1], rows, kwargs.get("kernel", 1), padding="same"))(a)
    return m.layer(key, lambda: nn.Linear(a.shape[-1], rows))(a)


@operation
def write(m, step, a, b, number):
    return _dense(m, f"write{step}", a, 3 + number, kernel=1 + 2 * (number % 2))


@operation
def write_and_activate(m, step, a, b, number):
    z = _dense(m, f"active{step}", a, 4 + number)
    return [F.relu, torch.tanh, F.gelu, lambda z: z.relu_(), lambda z: z.clamp(min=0), torch.sigmoid][number % 6](z)


@operation
def write_normalise_and_activate(m, step, a, b, number):
    z = _dense(m, f"normed{step}", a, 4 + number)
    kind = nn.BatchNorm2d if z.dim() == 4 else nn.BatchNorm1d
    z = m.layer(f"norm{step}", lambda: kind(z.shape[1]))(z)
    return m.layer(f"act{step}", lambda: nn.ReLU(inplace=number % 2 == 0))(z)


@operation
def activate(m, step, a, b, number):
    return [F.relu, torch.sigmoid, F.elu, lambda a: a.clone().relu_(), torch.tanh][number % 5](a)


@operation
def normalise(m, step, a, b, number):
    return m.layer(f"batch{step}", lambda: (nn.BatchNorm2d if a.dim() == 4 else nn.BatchNorm1d)(a.shape[1]))(a)


@operation
def fold(m, step, a, b, number):
    half = a.shape[1] // 2
    return [
        lambda: a + a.flip(1),
        lambda: a[:, :half] - a[:, half : 2 * half] if half else None,
        lambda: torch.cat([a, -a], 1) if a.shape[1] * 2 <= LIMIT else None,
        lambda: a.roll(1, 1) * a,
        lambda: torch.maximum(a[:, ::2], a[:, 1::2]) if a.shape[1] == 2 * half else None,
        lambda: a + a.mean(0),
    ][number % 6]()


@operation
def grouped(m, step, a, b, number):
    if a.dim() == 4 and a.shape[1] % 2 == 0:
        return F.relu(m.layer(f"grouped{step}", lambda: nn.Conv2d(a.shape[1], 2 * (1 + number), 1, groups=2))(a))
    return None


@operation
def reuse(m, step, a, b, number):
    for layer in m.earlier(step)[:: 1 if number % 2 else -1]:
        if isinstance(layer, nn.Linear) and a.dim() != 4 and layer.in_features == a.shape[-1]:
            return F.relu(layer(a))
        if isinstance(layer, nn.Conv2d) and a.dim() == 4 and layer.in_channels == a.shape[1]:
            return torch.tanh(layer(a))
    return None


@operation
def reuse_weight(m, step, a, b, number):
    for layer in m.earlier(step):
        if isinstance(layer, nn.Linear) and a.dim() != 4:
            weight = [layer.weight, layer.weight.flip(1), layer.weight.detach(), layer.weight.clone()][number % 4]
            if layer.in_features == a.shape[-1]:
                return F.linear(a, weight)
            if layer.out_features == a.shape[-1]:
                return a @ weight
    return None


@operation
def norm(m, step, a, b, number):
    if a.dim() == 4 and number % 2 and a.shape[2] * a.shape[3] > 1:
        return m.layer(f"instance{step}", lambda: nn.InstanceNorm2d(a.shape[1], affine=True))(a)
    return m.layer(f"layernorm{step}", lambda: nn.LayerNorm(a.shape[-1]))(a)


@operation
def add(m, step, a, b, number):
    if a.shape != b.shape:
        return None
    return [lambda: a + b, lambda: a * torch.sigmoid(b), lambda: torch.maximum(a, b), lambda: torch.where(a > 0, a, b)][
        number % 4
    ]()


@operation
def concatenate(m, step, a, b, number):
    if a.shape[2:] == b.shape[2:] and a.shape[1] + b.shape[1] <= LIMIT:
        return torch.cat([a, b], 1)
    return None


@operation
def cut(m, step, a, b, number):
    if a.shape[1] < 3:
        return None
    return [a[:, 1:], a[:, ::2], a.chunk(2, 1)[1], a[:, [1, 0, -1]], a.narrow(1, 0, 2), a[:, torch.arange(3).flip(0)]][
        number % 6
    ]


@operation
def rearrange(m, step, a, b, number):
    c = a.shape[1]
    return [
        lambda: a.flip(1),
        lambda: a.roll(1, 1),
        lambda: a.view(len(a), 2, c // 2, *a.shape[2:]).transpose(1, 2).reshape(a.shape) if c % 2 == 0 else None,
        lambda: a.flatten(1),
        lambda: a.permute(0, *range(2, a.dim()), 1) if a.dim() == 3 else a.transpose(-1, -2),
        lambda: a.repeat(1, 2, *[1] * (a.dim() - 2)) if c * 2 <= LIMIT else None,
        lambda: a.unsqueeze(1) if a.dim() == 2 else a.flatten(1, 2),
        lambda: F.pad(a, (0, 0) * (a.dim() - 2) + (1, 2)) if c + 3 <= LIMIT else None,
    ][number % 8]()


@operation
def shrink(m, step, a, b, number):
    if a.dim() == 4:
        return [
            lambda: F.avg_pool2d(a, 2, ceil_mode=True),
            lambda: F.max_pool2d(a, 2, ceil_mode=True),
            lambda: a.mean((2, 3)),
            lambda: a.amax((2, 3), keepdim=True).expand_as(a),
            lambda: F.adaptive_avg_pool2d(a, 2),
            lambda: a.var((2, 3), correction=0),
        ][number % 6]()
    if a.dim() == 3:
        return [a.sum(1), a[:, 0], a.amax(2), F.max_pool1d(a, 1)][number % 4]
    return [a - a.mean(0, keepdim=True), a.sum(1, keepdim=True), a / (1 + a.abs().amax(0)), a.mean(1, True) + a][
        number % 4
    ]


@operation
def regularise(m, step, a, b, number):
    return m.layer(f"drop{step}", lambda: nn.Dropout(0.3) if a.dim() != 4 else nn.Dropout2d(0.3))(a)


@operation
def mix(m, step, a, b, number):
    first = ((b.flatten(1)[:, :1] > 0) * (a.shape[1] > 1)).long().view(-1, *[1] * (a.dim() - 1))
    return [
        lambda: F.softmax(a, 1),
        lambda: a.cumsum(1),
        lambda: a.sort(1).values,
        lambda: a @ a.transpose(-1, -2) @ a if a.dim() > 2 else (a @ a.t()) @ a,
        lambda: torch.einsum("bc...,c->b...", a, m.number(f"mix{step}", a.shape[1])).reshape(len(a), -1),
        lambda: a * float(a.sum() > 0),
        lambda: a + torch.from_numpy(a.detach().numpy())[:, :1],
        lambda: a.gather(1, first.expand(-1, 1, *a.shape[2:])),
    ][number % 8]()


@operation
def scale(m, step, a, b, number):
    factor = m.number(f"scale{step}", a.shape[1], *[1] * (a.dim() - 2))
    return [lambda: a * factor, lambda: F.silu(a + factor), lambda: a.clone().mul_(factor), lambda: 1 - a][number % 4]()


@operation
def write_in_place(m, step, a, b, number):
    made = a.clone()
    if number % 2:
        made[:, :1] = 0.5
    elif b.shape == a.shape:
        made[:, 1:] = b[:, 1:]
    else:
        made[:, 0] += 1
    return made
