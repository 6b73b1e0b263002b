"""Sums over calls: those of every way equal sums in Python's own numbers, whenever they are taken."""

import math

import pytest
import torch

from plasticity.watching import call_sums
from plasticity.watching.call_sums import TOGETHER, _AnySums, _LargeSums, _SmallSums

# Shape, dimensions to sum over; on the right the one that is left, if there is one.
CASES = [
    ((5, 3), (0,), 1),
    ((3,), (), 0),
    ((), (), None),
    ((4, 3, 5), (0, 2), 1),
    ((4, 5, 3), (0, 1), 2),
    ((3, 5, 4), (1, 2), 0),
    ((40, 3, 2, 2), (0, 2, 3), 1),
    ((40, 3, 50, 40), (0, 2, 3), 1),
    ((7, 3), (0, 1), None),
]


def slow(calls, left):
    """Add up calls one number after the other."""
    units = [[] for _ in range(1 if left is None else calls[0].shape[left])]
    for h in calls:
        rows = h.double().reshape(1, -1) if left is None else h.double().movedim(left, 0).reshape(len(units), -1)
        for unit, row in zip(units, rows.tolist(), strict=True):
            unit += row
    return [
        [sum(value > 0 for value in unit) for unit in units],
        [math.fsum(unit) for unit in units],
        [math.fsum(map(abs, unit)) for unit in units],
    ]


def check(found, calls, left, signed):
    fired, total, magnitude = slow(calls, left)
    assert found[0].dtype == torch.int64 and found[0].reshape(-1).tolist() == fired
    assert len(found) == 2 + signed
    for each, expected in zip(found[1:], [total, magnitude], strict=False):
        assert each.dtype == torch.float64
        error = (each.reshape(-1) - torch.tensor(expected, dtype=torch.float64)).abs()
        assert bool((error <= 1e-6 * torch.tensor(magnitude) + 1e-14).all())


def draw(shape, signed, dtype, count):
    calls = [torch.randn(shape) for _ in range(count)]
    return [(h if signed else h.relu()).to(dtype) for h in calls]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("shape", "others", "left"), CASES)
def test_every_way_gives_the_sums_of_every_call(shape, others, left, signed, dtype):
    calls = draw(shape, signed, dtype, 3)
    for kind in (_AnySums, _LargeSums, _SmallSums):
        sums = kind(calls[0], others, signed)
        assert sums.take() == []
        for h in calls:
            assert not sums.add(h)
        check(sums.take(), calls, left, signed)
        assert sums.take() == []
        sums.add(calls[1])  # as if nothing had been added before
        check(sums.take(), calls[1:2], left, signed)


@pytest.mark.parametrize("kind", [_AnySums, _LargeSums, _SmallSums])
@pytest.mark.parametrize(("shape", "others", "left"), CASES[3:7])
def test_when_sums_are_taken_makes_no_difference_to_those_of_a_call(kind, shape, others, left):
    calls = draw(shape, True, torch.float32, TOGETHER)
    together, apart, single = kind(calls[0], others, True), kind(calls[0], others, True), []
    for number, h in enumerate(calls):
        assert together.add(h) == (number == TOGETHER - 1)
        apart.add(h)
        single.append(apart.take())
    for whole, parts in zip(together.take(), zip(*single, strict=True), strict=True):
        # Bit for bit: sums of numbers of 24 bits in 53 bits are exact.
        assert torch.equal(whole, torch.stack(parts).sum(0))


def test_large_activations_are_cut_into_parts(monkeypatch):
    for part in (1, 100, 250, 10**6):
        monkeypatch.setattr(call_sums, "PART", part)
        calls = draw((7, 4, 3, 3), True, torch.float32, 2)
        sums = _LargeSums(calls[0], (0, 2, 3), True)
        for h in calls:
            sums.add(h)
        check(sums.take(), calls, 1, True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_in_memory_makes_no_difference(layout):
    calls = [h.to(memory_format=layout) for h in draw((33, 4, 30, 30), True, torch.float32, 2)]
    sums = call_sums.call_sums(torch.empty(33, 4, 30, 30), (0, 2, 3), True)  # made for the ordinary one
    for h in calls:
        sums.add(h)
    check(sums.take(), calls, 1, True)


def test_the_way_is_chosen_by_what_is_summed_up(monkeypatch):
    def kind(*shape, others=(0,), **settings):
        return type(call_sums.call_sums(torch.empty(*shape, **settings), others, False))

    assert kind(32, 100) is _SmallSums
    assert kind(64, 1000) is kind(4096, 100, dtype=torch.bfloat16) is _LargeSums
    assert kind(32, 100, device="meta") is _AnySums
    assert kind(0, 100) is kind(32, 100, dtype=torch.int64) is _AnySums
    monkeypatch.setattr(call_sums, "_EXACT", 32)  # no more ones can be counted in float32
    assert kind(32, 100) is _AnySums and kind(31, 100) is _SmallSums


def test_values_that_are_not_finite_are_seen_in_the_sums():
    for shape in ((5, 3), (5, 3, 50, 50)):
        h = torch.ones(shape)
        h[2, 1], h[3, 2] = float("nan"), float("inf")
        sums = call_sums.call_sums(h, tuple(d for d in range(len(shape)) if d != 1), False)
        sums.add(h)
        assert sums.take()[1].isfinite().tolist() == [True, False, False]
