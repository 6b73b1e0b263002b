"""Rows of a representation: the first ones, however they come, and into whatever memory they go."""

import pytest
import torch

from plasticity.watching import layer_inputs
from plasticity.watching.layer_inputs import FEW, FeatureRows


def slow(inputs, dim, limit):
    rows = []
    for x in inputs:
        if dim != -1:
            x = x.flatten(x.dim() + dim + 1).mean(-1)
        rows += list(x.reshape(-1, x.shape[-1]))
    return torch.stack(rows[:limit]) if rows else None


@pytest.mark.parametrize("limit", [1, 7, 8, 40, FEW + 30, 3 * FEW])
@pytest.mark.parametrize(
    ("shapes", "dim"),
    [
        ([(8, 5)] * 100, -1),
        ([(8, 5), (8, 5), (3, 5)] * 40, -1),
        ([(2, 3, 5)] * 100, -1),
        ([(8, 5), (2, 3, 5), (8, 5), (8, 5)] * 30, -1),
        ([(4, 5, 2, 3)] * 100, -3),
        ([(5,)] * 100, -1),
        ([(0, 5), (8, 5), (0, 5), (8, 5)], -1),
        ([(400, 5)] * 3, -1),
    ],
)
def test_they_are_the_first_ones(limit, shapes, dim):
    torch.manual_seed(0)
    rows = FeatureRows(limit)
    for round_ in range(3):  # what is cleared is as new
        inputs = [torch.randn(shape).requires_grad_(round_ == 1) for shape in shapes]
        for x in inputs:
            rows.add(x, dim)
            if round_ == 2:
                x.detach().zero_()
        if round_ < 2:
            found, expected = rows.rows(), slow(inputs, dim, limit)
            assert torch.equal(found, expected.detach()) and not found.requires_grad
            assert rows.room == limit - len(found)
        else:
            assert rows.rows().any()  # copies
        rows.clear()
        assert rows.rows() is None and rows.room == limit


def test_what_lies_in_memory_in_another_way_is_copied_as_it_is():
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    inputs = [x, torch.randn(4, 6).t(), torch.randn(12, 8)[::2, ::2], torch.randn(1, 4).expand(6, 4), x, x.double(), x]
    rows = FeatureRows(100)
    for each in inputs:
        rows.add(each, -1)
    assert torch.equal(rows.rows().float(), torch.cat([each.float() for each in inputs]))


def test_only_what_is_plain_is_copied_as_bytes(monkeypatch):
    copied = []
    memmove = layer_inputs.memmove
    monkeypatch.setattr(layer_inputs, "memmove", lambda *args: (copied.append(args[2]), memmove(*args)))
    rows, x = FeatureRows(40), torch.randn(8, 5)
    for _ in range(3):
        rows.add(x, -1)
    assert copied == [160, 160]
    strange = torch.randn(5, 8).t(), x.double(), x.as_subclass(Marked)
    for each in (*strange, x):
        rows.add(each, -1)
    assert len(copied) == 2 and rows.room == 0
    assert torch.equal(rows.rows().float(), torch.cat([x, x, x, strange[0], x]))
    rows.clear()
    with torch.inference_mode():
        rows.add(x * 1, -1)
        rows.add(x * 1, -1)
    rows.add(x, -1)
    assert torch.equal(rows.rows(), torch.cat([x, x, x]))


def test_a_representation_of_another_width_begins_anew_once_it_is_cleared():
    rows = FeatureRows(10)
    rows.add(torch.ones(4, 5), -1)
    with pytest.raises(RuntimeError):
        rows.add(torch.ones(4, 6), -1)
    rows.clear()
    rows.add(torch.ones(4, 6), -1)
    rows.add(torch.ones(4, 6), -1)
    assert torch.equal(rows.rows(), torch.ones(8, 6))


def test_without_a_dimension_of_features_or_room_there_are_none():
    rows = FeatureRows(3)
    rows.add(torch.ones(4, 5), None)
    assert rows.rows() is None
    empty = FeatureRows(0)
    empty.add(torch.ones(4, 5), -1)
    assert empty.rows() is None


class Marked(torch.Tensor):
    """A tensor of another class."""
