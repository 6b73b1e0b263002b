"""Partial training: chosen entries learn as a step-by-step numpy reference says, all else stays bit-equal."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from freezing_cases import OPTIMIZERS, batches, mlp, snapshot, step
from torch import nn

from plasticity.errors import UserError
from plasticity.surgery.freezing import PartialTraining

ROWS = [1, 4]


def rows_of_first_layer() -> dict[str, torch.Tensor]:
    weight, bias = torch.zeros(6, 4, dtype=torch.bool), torch.zeros(6, dtype=torch.bool)
    weight[ROWS], bias[ROWS] = True, True
    return {"0.weight": weight, "0.bias": bias}


# --- the numpy reference ---------------------------------------------------------------------------------------


def numpy_gradients(p: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    z = x @ p["0.weight"].T + p["0.bias"]
    h = np.maximum(z, 0)
    error = 2 * (h @ p["2.weight"].T + p["2.bias"] - y)
    back = (error @ p["2.weight"]) * (z > 0)
    return {"0.weight": back.T @ x, "0.bias": back.sum(0), "2.weight": error.T @ h, "2.bias": error.sum(0)}


class NumpyOptimizer:
    """SGD with momentum, Adam and AdamW entry by entry; the step count is one for a tensor, as in PyTorch."""

    def __init__(self, kind: str, decay: float) -> None:
        self.kind, self.decay = kind, decay
        self.first: dict[str, np.ndarray] = {}
        self.second: dict[str, np.ndarray] = {}
        self.steps: dict[str, int] = {}

    def update(self, name: str, p: np.ndarray, g: np.ndarray, entries: list[tuple[int, ...]]) -> None:
        m = self.first.setdefault(name, np.zeros_like(p))
        v = self.second.setdefault(name, np.zeros_like(p))
        self.steps[name] = t = self.steps.get(name, 0) + 1
        for e in entries:
            if self.kind == "sgd":
                m[e] = 0.9 * m[e] + (g[e] + self.decay * p[e])
                p[e] -= 0.01 * m[e]
                continue
            gradient = g[e] + (self.decay * p[e] if self.kind == "adam" else 0)
            if self.kind == "adamw":
                p[e] -= 0.01 * self.decay * p[e]
            m[e] = 0.9 * m[e] + 0.1 * gradient
            v[e] = 0.999 * v[e] + 0.001 * gradient**2
            p[e] -= 0.01 * (m[e] / (1 - 0.9**t)) / (math.sqrt(v[e] / (1 - 0.999**t)) + 1e-8)


def torch_optimizer(kind: str, model: nn.Module, decay: float, **options: object) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=decay, **options)
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    return made(model.parameters(), lr=0.01, weight_decay=decay, **options)


@pytest.mark.parametrize("warm", [0, 3], ids=["fresh state", "warm state"])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_chosen_rows_follow_the_reference_and_all_else_is_bit_equal(kind: str, foreach: bool, warm: int) -> None:
    model, decay = mlp(), 0.1
    optimizer = torch_optimizer(kind, model, decay, foreach=foreach)
    reference = NumpyOptimizer(kind, decay)
    p = {name: tensor.detach().numpy().copy() for name, tensor in model.named_parameters()}
    trainable = rows_of_first_layer()
    data = batches(warm + 7)
    for number, (x, y) in enumerate(data):
        partial = warm <= number < warm + 4
        before = snapshot(model, optimizer)
        if partial:
            with PartialTraining(model, optimizer, trainable):
                step(model, optimizer, x, y)
        else:
            step(model, optimizer, x, y)
        after = snapshot(model, optimizer)
        gradients = numpy_gradients(p, x.numpy(), y.numpy())
        for name in p:
            if not partial:
                entries = list(np.ndindex(p[name].shape))
            elif name in trainable:
                entries = [e for e in np.ndindex(p[name].shape) if e[0] in ROWS]
            else:
                continue
            reference.update(name, p[name], gradients[name], entries)
        for name in p:
            np.testing.assert_allclose(after[name].numpy(), p[name], rtol=1e-9, atol=1e-12)
            first = after.get(f"{name} {'momentum_buffer' if kind == 'sgd' else 'exp_avg'}")
            if name in reference.first:
                np.testing.assert_allclose(first.numpy(), reference.first[name], rtol=1e-9, atol=1e-12)
            if kind != "sgd" and name in reference.first:
                second = after[f"{name} exp_avg_sq"].numpy()
                np.testing.assert_allclose(second, reference.second[name], rtol=1e-9, atol=1e-14)
                assert float(after[f"{name} step"]) == reference.steps[name]
        if partial:
            frozen = {key: value for key, value in after.items() if not key.startswith("0.")}
            assert frozen.keys() == {key for key in before if not key.startswith("0.")}
            assert all(torch.equal(value, before[key]) for key, value in frozen.items())
            others = [row for row in range(6) if row not in ROWS]
            for key, value in after.items():
                if key.startswith("0.") and value.dim() > 0 and key in before:
                    assert torch.equal(value[others], before[key][others]), key
                    assert not torch.equal(value[ROWS], before[key][ROWS]), key


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_leaves_frozen_entries_alone(name: str, warm: int) -> None:
    model = mlp()
    optimizer = getattr(torch.optim, name.split()[0])(model.parameters(), **OPTIMIZERS[name])
    data = batches(warm + 3)
    for x, y in data[:warm]:
        step(model, optimizer, x, y)
    before = snapshot(model, optimizer)
    with PartialTraining(model, optimizer, rows_of_first_layer()):
        for x, y in data[warm:]:
            step(model, optimizer, x, y)
    after = snapshot(model, optimizer)
    others = [row for row in range(6) if row not in ROWS]
    for key, value in before.items():
        if key.startswith("2."):
            assert torch.equal(value, after[key]), key
        elif value.dim() > 0:
            assert torch.equal(value[others], after[key][others]), key
    assert not torch.equal(before["0.weight"][ROWS], after["0.weight"][ROWS])
    if not warm:  # state begins as for an entry that has never had a gradient
        twin = nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
        blank = type(optimizer)([twin], **OPTIMIZERS[name])
        for _ in range(3):
            twin.grad = torch.zeros_like(twin)
            blank.step()
        for key, value in blank.state[twin].items():
            if isinstance(value, torch.Tensor) and value.shape == twin.shape:
                assert torch.equal(after[f"0.weight {key}"][others], value[others]), key


def test_a_step_without_gradients_changes_nothing() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    before = snapshot(model, optimizer)
    with PartialTraining(model, optimizer, rows_of_first_layer()):
        optimizer.step()
    after = snapshot(model, optimizer)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_mask_without_an_entry_freezes_the_step_count_too() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    nothing = {"0.weight": torch.zeros(6, 4, dtype=torch.bool)}
    before = snapshot(model, optimizer)
    with PartialTraining(model, optimizer, nothing):
        step(model, optimizer, *batches(1)[0])
    after = snapshot(model, optimizer)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_non_finite_gradients_do_not_reach_frozen_entries() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = snapshot(model, optimizer)
    with PartialTraining(model, optimizer, rows_of_first_layer()):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
        optimizer.step()
    others = [row for row in range(6) if row not in ROWS]
    assert torch.equal(model[0].weight[others], before["0.weight"][others])
    assert torch.equal(model[2].weight, before["2.weight"])
    assert bool(model[0].weight[ROWS].isnan().all())
    assert bool((optimizer.state[model[0].weight]["momentum_buffer"][others] == 0).all())


def test_frozen_entries_survive_an_update_that_fails_halfway() -> None:
    class Failing(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.add_(1)
            raise RuntimeError("halfway")

    model = mlp()
    optimizer = Failing(model.parameters(), lr=0.1)
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="halfway"), PartialTraining(model, optimizer, rows_of_first_layer()):
        step(model, optimizer, *batches(1)[0])
    others = [row for row in range(6) if row not in ROWS]
    assert torch.equal(model[0].weight[others], before["0.weight"][others])
    assert torch.equal(model[2].weight, before["2.weight"])


# --- the device ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False),
        lambda p: torch.optim.Adam(p, foreach=True, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, foreach=False, weight_decay=0.1),
    ],
)
def test_nothing_waits_for_the_device(make) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 4, 3)
    ).to("meta")
    optimizer = make(model.parameters())
    mask = torch.zeros(8, 1, 3, 3, dtype=torch.bool)
    mask[1] = True
    with pytest.raises(Exception, match="meta"):
        float(model(torch.empty(2, 1, 4, 4, device="meta")).detach().sum())  # this is what a hidden sync would do
    with PartialTraining(model, optimizer, {"0.weight": mask}):
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(
                model(torch.empty(2, 1, 4, 4, device="meta")), torch.empty(2, dtype=torch.int64, device="meta")
            ).backward()
            optimizer.step()
    assert [name for name, p in model.named_parameters() if optimizer.state.get(p)] == ["0.weight"]


# --- arguments -------------------------------------------------------------------------------------------------


def test_tied_weights_are_trained_where_any_name_says_so() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, last = torch.zeros(2, 3, 3, dtype=torch.bool)
    first[0], last[1] = True, True
    before = model[0].weight.detach().clone()
    with PartialTraining(model, optimizer, {"0.weight": first, "2.weight": last}):
        model[0].weight.grad = torch.ones(3, 3)
        optimizer.step()
    assert torch.equal(model[0].weight[2], before[2])
    assert bool((model[0].weight[:2] != before[:2]).all())


def test_what_cannot_be_done_is_said_in_one_line() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"^the model has no parameter '9.weight'$"):
        PartialTraining(model, optimizer, {"9.weight": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(UserError, match=r"mask of '0.bias' must be boolean, of shape \(6,\)"):
        PartialTraining(model, optimizer, {"0.bias": torch.ones(5, dtype=torch.bool)})
    with pytest.raises(UserError, match="must be boolean"):
        PartialTraining(model, optimizer, {"0.bias": torch.ones(6)})
    partial = PartialTraining(model, optimizer, rows_of_first_layer())
    with partial:
        with pytest.raises(UserError, match="already attached"):
            partial.attach()
        with pytest.raises(UserError, match="without a closure"):
            optimizer.step(lambda: torch.zeros(()))
    partial.detach()  # a second time is no mistake
