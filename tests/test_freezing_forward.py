"""Partial training: forward passes are those of eval mode, and leave no trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from freezing_cases import snapshot
from torch import nn

from plasticity.surgery.freezing import PartialTraining


class Noisy(nn.Module):
    """Dropout as module, as function, with the argument by name and by position, and inside attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout2d(0.5)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        self.memory = nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.drop(torch.relu(self.norm(self.conv(x))))
        h = F.dropout(h, 0.3, training=self.training)
        h = F.alpha_dropout(h, 0.3, self.training)
        h = torch.dropout(h, 0.3, self.training)
        tokens = h.flatten(2).transpose(1, 2)
        attended, _ = self.attention(tokens, tokens, tokens)
        scaled = F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=0.3 if self.training else 0.0)
        remembered, _ = self.memory(attended + scaled)
        return self.head(remembered.flatten(1))


def noisy() -> tuple[Noisy, torch.optim.Optimizer, dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(1)
    model = Noisy()
    mask = torch.zeros_like(model.conv.weight, dtype=torch.bool)
    mask[2] = True
    return model, torch.optim.Adam(model.parameters()), {"conv.weight": mask}, torch.randn(6, 1, 4, 4)


def test_nothing_is_random_and_no_statistics_move() -> None:
    model, optimizer, trainable, x = noisy()
    assert not torch.equal(model(x), model(x))
    as_in_eval = copy.deepcopy(model).eval()(x)
    modes = {name: module.training for name, module in model.named_modules()}
    before = snapshot(model, optimizer)
    random_state = torch.get_rng_state()
    with PartialTraining(model, optimizer, trainable):
        assert model.training  # modules that choose their head by it go on as in training
        torch.testing.assert_close(model(x), as_in_eval)
        model.train()
        output = model(x)
        torch.testing.assert_close(output, as_in_eval)
        output.sum().backward()
        optimizer.step()
        assert torch.equal(torch.get_rng_state(), random_state)
    after = snapshot(model, optimizer)
    assert [key for key in before if not torch.equal(before[key], after[key])] == ["conv.weight"]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.memory.dropout == 0.5
    assert not torch.equal(model(x), model(x))
    assert not torch.equal(model.norm.running_mean, before["norm.running_mean"])


def test_a_module_in_eval_mode_before_stays_so_after() -> None:
    model, optimizer, trainable, _ = noisy()
    model.norm.eval()
    with PartialTraining(model, optimizer, trainable):
        pass
    assert not model.norm.training and model.drop.training


def test_hooks_leave_no_trace_and_a_copy_made_inside_is_free() -> None:
    model, optimizer, trainable, x = noisy()
    with PartialTraining(model, optimizer, trainable):
        twin = copy.deepcopy(model).train()
        twin(x)
        assert not torch.equal(F.dropout(x, 0.5), F.dropout(x, 0.5))
    assert not torch.equal(twin(x), twin(x))
    assert model.drop.training and twin.drop.training
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_a_forward_pass_that_fails_takes_its_mode_along() -> None:
    model, optimizer, trainable, x = noisy()
    with PartialTraining(model, optimizer, trainable):
        with pytest.raises(RuntimeError):
            model(x[:, :, :2])
        assert not torch.equal(F.dropout(x, 0.5), F.dropout(x, 0.5))


def test_a_compiled_model_is_still_too() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(F.dropout(torch.relu(self.norm(self.first(x))), 0.5, self.training))

    model = Net()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, mask = torch.randn(8, 4), torch.zeros(6, 4, dtype=torch.bool)
    mask[0] = True
    compiled(x)
    before = snapshot(model, optimizer)
    with PartialTraining(compiled, optimizer, {"first.weight": mask}):
        output = compiled(x)
        torch.testing.assert_close(output, copy.deepcopy(model).eval()(x))
        output.sum().backward()
        optimizer.step()
    after = snapshot(model, optimizer)
    assert [key for key in before if not torch.equal(before[key], after[key])] == ["first.weight"]
