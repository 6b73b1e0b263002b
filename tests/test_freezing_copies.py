"""Partial training of any entries: bit-equal to updates that copy everything, whatever happens in between."""

import copy
from contextlib import nullcontext

import pytest
import torch
from freezing_cases import OPTIMIZERS, batches, mlp, snapshot, step
from torch import nn

from plasticity.surgery.freezing import PartialTraining


def slow_step(model, optimizer, x, y, trainable):
    """By copies of everything, entry by entry."""
    optimizer.zero_grad()
    ((model(x) - y) ** 2).sum().backward()
    kept = {}
    for name, p in model.named_parameters():
        if name not in trainable:
            p.grad = None
            continue
        state = {key: value.clone() for key, value in optimizer.state[p].items() if value.shape == p.shape}
        kept[p] = trainable[name], p.detach().clone(), state
        p.grad[~trainable[name]] = 0
        p.data[~trainable[name]] = 0
    optimizer.step()
    for p, (mask, values, state) in kept.items():
        p.data[~mask] = values[~mask]
        for key, before in state.items():
            optimizer.state[p][key][~mask] = before[~mask]


class Convolutions(nn.Module):
    """Weights whose channels are last in memory, and one that has no rows of units."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(4, 6, 1).to(memory_format=torch.channels_last)
        self.second = nn.ConvTranspose2d(6, 3, 1)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x[:, :, None, None]).relu())[:, :, 0, 0]


def state_tensors(optimizer):
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor) and value.dim()]


def masks_of(model, kind):
    generator = torch.Generator().manual_seed(3)
    found = {}
    for number, (name, p) in enumerate(model.named_parameters()):
        mask = torch.rand(p.shape, generator=generator) < 0.5
        if kind == "rows" or (kind == "mixed" and number == 1):
            mask = (torch.arange(len(p)) % 2 == 0).reshape(-1, *[1] * (p.dim() - 1)).expand(p.shape).clone()
        elif kind == "columns" and p.dim() > 1:
            mask = (torch.arange(p.shape[1]) % 2 == 0).reshape(1, -1, *[1] * (p.dim() - 2)).expand(p.shape).clone()
        elif kind == "mixed" and number == 2:
            mask = torch.ones_like(mask)
        elif kind == "mixed" and number == 3:
            continue
        found[name] = mask
    return found


@pytest.mark.parametrize("kind", ["rows", "columns", "scattered", "mixed"])
@pytest.mark.parametrize("make", [mlp, Convolutions])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_those_of_copies_of_everything(name, make, kind):
    """Also where somebody changes the optimizer's state between updates, or puts other tensors there."""
    found = []
    for slow in (True, False):
        model = make()
        optimizer = getattr(torch.optim, name.split()[0])(model.parameters(), **OPTIMIZERS[name])
        data, trainable = batches(8), masks_of(model, kind)
        for x, y in data[:2]:
            step(model, optimizer, x, y)
        seen = []
        with nullcontext() if slow else PartialTraining(model, optimizer, trainable):
            for number, (x, y) in enumerate(data[2:]):
                if slow:
                    slow_step(model, optimizer, x, y, trainable)
                else:
                    step(model, optimizer, x, y)
                seen.append(snapshot(model, optimizer))
                if number == 1:
                    for value in state_tensors(optimizer):
                        value.mul_(0.5)
                if number == 3:
                    before = state_tensors(optimizer)
                    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                    for old, value in zip(before, state_tensors(optimizer), strict=True):
                        value.mul_(0.5)
                        while value._version < old._version:  # another tensor that was written to as often
                            value.mul_(1)
        found.append(seen)
    for expected, other in zip(*found, strict=True):
        assert expected.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in expected.items())
