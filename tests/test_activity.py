"""Statistics of watched units are exact, for every layout and data type."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from cases import AVALANCHE, Net
from slow_statistics import Slow, compare
from torch import nn

from plasticity import UnitGroup, find_units, watch


def test_linear():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))
    compare(
        model,
        [torch.randn(n, 4) for n in (7, 1, 3)],
        lambda m, x: {"0": (F.relu(m[0](x)), 1), "2": (torch.tanh(m[2](F.relu(m[0](x)))), 1)},
    )


def test_tokens():
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2))
    compare(model, [torch.randn(2, 6, 4), torch.randn(1, 3, 4)], lambda m, x: {"0": (F.gelu(m[0](x)), 2)})


@pytest.mark.parametrize("unbatched", [False, True])
def test_convolutions(unbatched):
    lead = () if unbatched else (3,)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 1))
    compare(model, [torch.randn(*lead, 2, 9), torch.randn(*lead, 2, 6)], lambda m, x: {"0": (F.relu(m[0](x)), -2)})
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 2, 1))
    compare(model, [torch.randn(*lead, 2, 9, 5)], lambda m, x: {"0": (F.leaky_relu(m[0](x)), -3)})


def test_batch_norm_and_dropout():
    """What counts is the activation itself, not what a reader sees behind a dropout."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.9), nn.Flatten(), nn.Linear(36, 2)
    )
    compare(model, [torch.randn(3, 2, 5, 5)], lambda m, x: {"0": (F.relu(copy.deepcopy(m[1])(m[0](x))), 1)})


def test_flatten_before_the_activation():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(36, 2))
    x = torch.randn(3, 2, 5, 5)
    compare(model, [x], lambda m, x: {"0": (F.relu(m[0](x)), 1)})


def test_channel_last():
    model = Net(
        lambda m, x: m.b(F.relu(m.a(x).permute(0, 2, 3, 1)).flatten(1)), a=nn.Conv2d(2, 4, 3), b=nn.Linear(36, 2)
    )
    compare(model, [torch.randn(3, 2, 5, 5)], lambda m, x: {"a": (F.relu(m.a(x)), 1)})


def test_units_seen_twice():
    model = Net(lambda m, x: m.b(F.relu(torch.cat([z := m.a(x), -z], 1))), a=nn.Linear(4, 5), b=nn.Linear(10, 2))
    compare(model, [torch.randn(3, 4)], lambda m, x: {"a": (F.relu(torch.stack([m.a(x), -m.a(x)], 2)), 1)})


def test_one_unit():
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 2))
    compare(model, [torch.randn(6, 4)], lambda m, x: {"0": (F.relu(m[0](x)), 1)})


def test_an_activation_module_used_again():
    """torchvision's blocks call one ReLU module several times."""
    from torchvision.models.resnet import BasicBlock

    model = nn.Sequential(nn.Conv2d(3, 4, 3), BasicBlock(4, 4), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()

    def references(m, x):
        block = m[1]
        first = F.relu(block.bn1(block.conv1(m[0](x))))
        second = F.relu(block.bn2(block.conv2(first)) + m[0](x))
        return {"1.conv1": (first, 1), "0": (second, 1)}

    compare(model, [torch.randn(2, 3, 8, 8), torch.randn(3, 3, 8, 8)], references)


def test_functions_in_blocks(monkeypatch):
    """Avalanche's SlimResNet18 has no ReLU modules; its calls are caught by a function in place of its `relu`."""
    from avalanche.models import slim_resnet18

    (case,) = [case for case in AVALANCHE if case.name == "SlimResNet18"]
    model, (example, *_) = case.model().eval(), case.inputs()
    units = find_units(model, example)
    with watch(model, units) as activity, torch.no_grad():
        model(*example)
        model(example[0][:1])
    caught, relu = [], slim_resnet18.relu
    monkeypatch.setattr(slim_resnet18, "relu", lambda x: caught.append(relu(x)) or caught[-1].clone())
    with torch.no_grad():
        model(*example)
        model(example[0][:1])
    assert len(caught) == 2 * len(units) == 34
    found = activity.statistics()
    for number, group in enumerate(units):
        slow = Slow(group.size)
        slow.add(caught[number], 1)
        slow.add(caught[number + len(units)], 1)
        slow.check(found[group.name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_data_types(dtype):
    model = nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 2)).to(dtype)
    compare(model, [torch.randn(7, 4, dtype=dtype)], lambda m, x: {"0": (F.silu(m[0](x)), 1)})


def test_autocast():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compare(model, [torch.randn(7, 4), torch.randn(7, 4)], lambda m, x: {"0": (F.relu(m[0](x)), 1)})


def test_a_vector_without_a_batch():
    """Sums are never the activations' own memory, even where there is nothing to sum over."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    group = UnitGroup("0", 5, "tanh", at="1", consumers=[("2", 1)])
    seen = []
    model[1].register_forward_hook(lambda module, args, output: seen.append((output, output.detach().clone())))
    with watch(model, [group]) as activity:
        for _ in range(3):
            model(torch.randn(4, dtype=torch.float64)).sum().backward()
    assert activity.statistics()["0"].count == 3
    assert all(torch.equal(output, kept) for output, kept in seen)


def test_counts_beyond_what_float32_holds():
    """A unit that always fires, over many passes and in a single one: float32 would have stopped at 2^24."""
    model = Net(lambda m, x: m.b(F.relu(m.a(x))[:, :, :1]), a=nn.Conv1d(1, 2, 1), b=nn.Conv1d(2, 1, 1))
    with torch.no_grad():
        model.a.weight.zero_()
        model.a.bias.copy_(torch.tensor([0.1, -1.0]))
        units = find_units(model, torch.zeros(1, 1, 2))
        with watch(model, units) as activity:
            for _ in range(8):
                model(torch.zeros(1, 1, 2**22))
            model(torch.zeros(1, 1, 1))
            model(torch.zeros(1, 1, 2**24 + 1))
    found = activity.statistics()["a"]
    assert found.count == 2**25 + 1 + 2**24 + 1
    assert found.fired.tolist() == [found.count, 0]
    assert found.mean[0].item() == pytest.approx(0.1, rel=1e-6)
    assert found.mean[1].item() == 0


def test_negative_zero_and_infinity():
    model = nn.Sequential(nn.Linear(1, 3), nn.Hardtanh(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.0], [-1.0]]))
        model[0].bias.zero_()
        units = find_units(model, torch.ones(1, 1))
        with watch(model, units) as activity:
            model(torch.tensor([[math.inf], [-0.0], [0.0]]))
    assert activity.statistics()["0"].fired.tolist() == [1, 0, 0]
