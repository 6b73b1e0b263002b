"""`find_units` leaves everything as it was, whatever happens in between."""

import random

import numpy as np
import pytest
import torch
from cases import AVALANCHE, TORCHVISION, Net
from slow_statistics import hooks
from torch import nn

from plasticity import TraceError, find_units


class Everything(nn.Module):
    """Draws from every random state, counts in buffers, replaces one, and turns itself to eval mode; then may fail."""

    def __init__(self, fail=False):
        super().__init__()
        self.fail = fail
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("replaced", torch.ones(2))
        self.register_buffer("none", None)
        self.register_buffer("hidden", torch.full((3,), float("nan")), persistent=False)

    def forward(self, x):
        self.steps += 1 + random.random() + np.random.rand()
        self.hidden.fill_(0)
        self.replaced = self.replaced * 2
        self.none = torch.ones(1)
        self.eval()
        if self.fail:
            raise ZeroDivisionError("as told")
        return x + torch.rand(())


def build(fail=False):
    model = nn.Sequential(
        *(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Dropout2d(),
            nn.Flatten(),
            nn.Linear(144, 6),
        ),
        *(nn.BatchNorm1d(6, momentum=None), nn.RReLU(), Everything(fail), nn.Linear(6, 2)),
    )
    model[1].eval()  # frozen by its user
    model[5].requires_grad_(False)
    return model, torch.randn(2, 3, 8, 8)


def state(model):
    buffers = [(name, buffer) for name, module in model.named_modules() for buffer in module._buffers.items()]
    return {
        "training": [module.training for module in model.modules()],
        "objects": [(name, key, id(buffer)) for name, (key, buffer) in buffers],
        "buffers": [None if buffer is None else buffer.numpy().tobytes() for _, (_, buffer) in buffers],
        "parameters": [
            (name, id(p), p.requires_grad, p.detach().numpy().tobytes()) for name, p in model.named_parameters()
        ],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes()) for p in model.parameters()],
        "hooks": hooks(model),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("fail", [False, True], ids=["passing", "failing"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_nothing_is_touched(fail, training):
    model, x = build(fail)
    model.train(training)
    model[1].eval()
    model[0].register_forward_hook(lambda *args: None)
    model[0].weight.grad = torch.randn_like(model[0].weight)
    before = state(model)
    if fail:
        with pytest.raises(TraceError, match=r"ZeroDivisionError in module '8' \(Everything\), .*as told"):
            find_units(model, x)
    else:
        assert [group.name for group in find_units(model, x)] == ["0", "5"]
    after = state(model)
    assert after.keys() == before.keys()
    for part, value in before.items():
        assert after[part] == value, part
    assert torch.overrides._get_current_function_mode_stack() == []


def test_library_models_are_not_touched():
    for case in (*AVALANCHE, TORCHVISION[0], TORCHVISION[3]):
        model, (example, *_) = case.model().train(), case.inputs()
        before = state(model)
        find_units(model, example)
        assert state(model) == before, case.name


def test_no_graph_is_kept():
    model, x = build()
    model[8] = nn.Identity()
    x.requires_grad_()
    find_units(model, x)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    model(x).sum().backward()
    assert x.grad is not None


def test_one_sample_of_a_batch_norm_in_train_mode():
    """A single sample has no variance to normalise by, and is enough for finding units."""
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).train()
    units = find_units(model, torch.randn(1, 4))
    assert units["0"].private
    assert int(model[1].num_batches_tracked) == 0


def test_hooks_of_the_user_run():
    model = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    model.a.register_forward_hook(lambda module, args, output: output.flip(1))
    (group,) = find_units(model, torch.randn(3, 4))
    assert group.readers[0].columns.flatten().tolist() == [0, 1, 2, 3, 4]
    assert group.writes[0].rows.tolist() == [4, 3, 2, 1, 0]
