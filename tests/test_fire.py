"""FIRE against the singular value decomposition."""

import numpy as np
import pytest
import torch
from torch import nn
from weight_methods import STATEFUL, conv, copy_of, mlp, moved, trained

from plasticity.methods.fire import FIRERule, fire, orthogonalise
from plasticity.methods.whole_weights import change_weights

SHAPES = [(6, 6), (9, 4), (4, 9), (1, 7), (7, 1), (1, 1)]


def iterated(matrix, iterations):
    """The same by singular values: x -> 1.5 x - 0.5 x^3, from those over their own length."""
    u, s, v = np.linalg.svd(np.asarray(matrix, dtype=np.float64), full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(iterations):
        s = 1.5 * s - 0.5 * s**3
    return u @ np.diag(s) @ v


def nearest(matrix):
    u, _, v = np.linalg.svd(np.asarray(matrix, dtype=np.float64), full_matrices=False)
    return u @ v


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("iterations", [1, 4, 10])
def test_iterations_move_singular_values_and_nothing_else(shape, iterations):
    matrix = torch.randn(shape)
    found = orthogonalise(matrix, iterations)
    np.testing.assert_allclose(found.numpy(), iterated(matrix, iterations), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_many_iterations_end_at_the_nearest_orthogonal_matrix(shape):
    matrices = torch.randn(5, *shape, dtype=torch.float64)
    found = orthogonalise(matrices, 60).numpy()
    for one, matrix in zip(found, matrices, strict=True):
        np.testing.assert_allclose(one, nearest(matrix), atol=1e-8)


def test_ten_iterations_suffice_for_a_layer_as_it_is_at_the_start():
    weight = nn.Linear(64, 128).weight.detach()
    singular = torch.linalg.svdvals(orthogonalise(weight))
    assert float(singular.min()) > 0.99 and float(singular.max()) < 1.001


def test_zeros_and_low_precision():
    assert torch.equal(orthogonalise(torch.zeros(3, 4)), torch.zeros(3, 4))
    half = orthogonalise(torch.randn(8, 4).to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    np.testing.assert_allclose((half.float().T @ half.float()).numpy(), np.eye(4), atol=0.05)


@pytest.mark.parametrize("optimizer", STATEFUL)
@pytest.mark.parametrize("build", [mlp, conv])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_against_singular_values_layer_by_layer(build, optimizer, strength):
    """Every kernel position and every group is a matrix of its own; biases and normalisers stay."""
    model, optimizer, probe = trained(build, optimizer)
    before = copy_of(model)
    rule = FIRERule(iterations=60, strength=strength)
    report = change_weights("fire", model, probe, lambda: fire(model, rule), optimizer=optimizer)
    weights = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert moved(model, before) == {f"{name}.weight" for name in weights}
    for name in weights:
        old, groups = before[f"{name}.weight"].numpy(), getattr(model.get_submodule(name), "groups", 1)
        flat = old.reshape(*old.shape[:2], -1)
        expected = np.zeros_like(flat)
        for position in range(flat.shape[2]):
            for group in np.split(np.arange(len(old)), groups):
                matrix = flat[group, :, position]
                scale = np.sqrt(matrix.shape[0] / matrix.shape[1]) / flat.shape[2]
                expected[group, :, position] = strength * scale * nearest(matrix) + (1 - strength) * matrix
        new = model.get_parameter(f"{name}.weight").detach().numpy()
        np.testing.assert_allclose(new, expected.reshape(old.shape), atol=1e-4)
    assert not optimizer.state
    assert report.counts["parameters"] == len(weights) and report.output_shift > 0


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)
        self.to_q, self.to_v, self.qkv = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 18, bias=False)
        self.mlp = nn.Linear(6, 6)


@pytest.mark.parametrize("layers", ["auto", "attention", "all"])
def test_with_attention_only_queries_and_keys_change(layers):
    model = Attention()
    before = copy_of(model)
    fire(model, FIRERule(iterations=60, layers=layers))
    changed = {"attention.in_proj_weight", "to_q.weight", "qkv.weight"}
    if layers == "all":
        assert moved(model, before) == changed | {"attention.out_proj.weight", "to_v.weight", "mlp.weight"}
        np.testing.assert_allclose(model.qkv.weight.detach(), 3**0.5 * nearest(before["qkv.weight"]), atol=1e-4)
        return
    assert moved(model, before) == changed
    np.testing.assert_allclose(model.to_q.weight.detach(), (4 / 6) ** 0.5 * nearest(before["to_q.weight"]), atol=1e-4)
    for name in ("attention.in_proj_weight", "qkv.weight"):
        new, old = model.get_parameter(name).detach(), before[name]
        for part in (slice(6), slice(6, 12)):
            np.testing.assert_allclose(new[part], nearest(old[part]), atol=1e-4)
        assert torch.equal(new[12:], old[12:])


def test_without_attention_that_choice_changes_nothing():
    model = mlp()
    before = copy_of(model)
    assert fire(model, FIRERule(layers="attention")) == [] and not moved(model, before)
