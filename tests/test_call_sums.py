"""Sums over calls: those of every way equal sums in Python's own numbers, whenever they are asked for."""

import math

import pytest
import torch
from torch import nn

from plasticity.watching import call_sums, fused_sums
from plasticity.watching.call_sums import TOGETHER, AnySums, FloatSums
from plasticity.watching.fused_sums import FusedSums

# Shape, dimensions to sum over; on the right the one that is left, if there is one.
CASES = [
    ((5, 3), (0,), 1),
    ((3,), (), 0),
    ((), (), None),
    ((4, 3, 5), (0, 2), 1),
    ((4, 5, 3), (0, 1), 2),
    ((3, 5, 4), (1, 2), 0),
    ((3, 5, 70), (1, 2), 0),
    ((40, 3, 2, 2), (0, 2, 3), 1),
    ((40, 3, 50, 40), (0, 2, 3), 1),
    ((7, 1, 6, 7), (0, 2, 3), 1),
    ((7, 3), (0, 1), None),
    ((7, 30), (0, 1), None),
]
KINDS = [AnySums, FloatSums, FusedSums]


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


def check(found, calls, left, signed, exact=False):
    fired, total, magnitude = slow(calls, left)
    assert found[0].dtype == torch.int64 and found[0].reshape(-1).tolist() == fired
    assert len(found) == 2 + signed
    for each, expected in zip(found[1:], [total, magnitude], strict=False):
        assert each.dtype == torch.float64
        error = (each.reshape(-1) - torch.tensor(expected, dtype=torch.float64)).abs()
        assert bool((error <= (1e-14 if exact else 1e-6) * torch.tensor(magnitude).double() + 1e-14).all())


def draw(shape, signed, dtype, count):
    calls = [torch.randn(shape) for _ in range(count)]
    return [(h if signed else h.relu()).to(dtype) for h in calls]


def refuse(h):
    raise AssertionError("they are alike")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("shape", "others", "left"), CASES)
def test_every_way_gives_the_sums_of_every_call(shape, others, left, signed, dtype):
    calls = draw(shape, signed, dtype, 3)
    for kind in KINDS:
        sums = kind(calls[0], others, signed, refuse)
        assert sums.sums() == [] and sums.calls == 0
        for number, h in enumerate(calls, start=1):
            sums.add(h)
            assert sums.calls == number
        check(sums.sums(), calls, left, signed, exact=kind is FusedSums)
        check(sums.sums(), calls, left, signed)  # to ask changes nothing
        sums.clear()
        assert sums.sums() == [] and sums.calls == 0
        sums.add(calls[1])
        check(sums.sums(), calls[1:2], left, signed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "others", "left"), CASES[3:7])
def test_to_ask_for_sums_in_between_makes_no_difference(kind, shape, others, left):
    calls = draw(shape, True, torch.float32, TOGETHER + 3)
    asked, unasked = kind(calls[0], others, True, refuse), kind(calls[0], others, True, refuse)
    for h in calls:
        asked.add(h)
        unasked.add(h)
        before = [each.clone() for each in asked.sums()]
    for one, other, last in zip(asked.sums(), unasked.sums(), before, strict=True):
        # Bit for bit: sums of numbers of 24 bits in 53 bits are exact.
        assert torch.equal(one, other) and torch.equal(one, last)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_that_were_returned_stay_what_they_were(kind):
    calls = draw((5, 3), True, torch.float32, 2)
    sums = kind(calls[0], (0,), True, refuse)
    sums.add(calls[0])
    first = sums.sums()
    kept = [each.clone() for each in first]
    sums.add(calls[1])
    sums.sums()
    sums.clear()
    assert all(map(torch.equal, first, kept))


@pytest.mark.parametrize("part", [1, 100, 10**6])
def test_large_activations_are_taken_in_parts(monkeypatch, part):
    monkeypatch.setattr(call_sums, "PART", part)
    for length in (7, 33):
        calls = draw((length, 4, 5, 6), True, torch.float32, 2)
        sums = FloatSums(calls[0], (0, 2, 3), True, refuse)
        for h in calls:
            sums.add(h)
        check(sums.sums(), calls, 1, True)


ORDERS = [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3), (2, 0, 1, 3), (2, 3, 1, 0)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("left", [0, 1, 3, None])
@pytest.mark.parametrize("sizes", [(6, 4, 9, 8), (6, 1, 1, 8), (50, 2, 1, 1)])
def test_dimensions_may_lie_in_memory_in_any_order(order, left, sizes):
    calls = [torch.randn([sizes[dim] for dim in order]).permute([order.index(dim) for dim in range(4)]) for _ in "ab"]
    assert calls[0].shape == sizes and fused_sums.fusible(calls[0])
    sums = FusedSums(calls[0], tuple(dim for dim in range(4) if dim != left), True, refuse)
    for h in calls:
        sums.add(h)
    check(sums.sums(), calls, left, True, exact=True)


@pytest.mark.parametrize("kind", KINDS)
def test_other_activations_are_handed_on_and_not_counted(kind):
    others = []
    h = torch.randn(4, 3, 5, 5)
    sums = kind(h, (0, 2, 3), True, others.append)
    strange = [torch.randn(5, 3, 5, 5), h.double(), torch.empty(4, 3, 5, 5, device="meta")]
    if kind is FusedSums:  # the others read values, not memory
        strange += [h.contiguous(memory_format=torch.channels_last), h[:1].expand(4, 3, 5, 5), Marked(h.clone())]
    for each in strange:
        sums.add(each)
    assert [id(each) for each in others] == [*map(id, strange)] and sums.calls == 0 and sums.sums() == []
    sums.add(h)
    check(sums.sums(), [h], 1, True)


class Marked(torch.Tensor):
    """A tensor of another class."""


def test_the_way_is_chosen_by_what_is_summed_up(monkeypatch):
    def kind(*shape, others=(0,), of=torch.empty, **settings):
        return type(call_sums.call_sums(of(*shape, **settings), others, False, refuse))

    assert kind(32, 100) is kind(64, 8000) is kind(4096, 100, dtype=torch.bfloat16) is FusedSums
    assert kind(32, 100, of=lambda *shape: torch.zeros(shape).requires_grad_() * 2) is FusedSums
    assert kind(32, 100, of=lambda *shape: nn.Parameter(torch.zeros(shape))) is FusedSums
    assert kind(32, 100, device="meta") is kind(0, 100) is kind(32, 100, dtype=torch.int64) is AnySums
    for of in (
        lambda *shape: torch.zeros(1, 100).expand(shape),
        lambda *shape: torch.zeros(64, 200)[::2, ::2],
        lambda *shape: torch.zeros(shape).as_subclass(Marked),
        lambda *shape: torch._neg_view(torch.zeros(shape)),
    ):
        assert kind(32, 100, of=of) is FloatSums
    monkeypatch.setattr(call_sums, "_EXACT", 32)  # no more ones can be counted in float32
    assert kind(32, 100, of=lambda *shape: torch.zeros(1, 100).expand(shape)) is AnySums
    assert kind(31, 100, of=lambda *shape: torch.zeros(1, 100).expand(shape)) is FloatSums
    monkeypatch.setattr(torch, "get_num_threads", lambda: fused_sums.THREADS + 1)
    assert kind(32, 100) is FusedSums
    monkeypatch.setattr(fused_sums, "ALONE", 3199)
    assert kind(31, 100) is FusedSums and kind(32, 100) is AnySums


def test_tensors_within_torch_func_have_no_memory_to_read():
    """A network that is watched can run under torch.func: sums are then made by PyTorch's functions."""
    outside = torch.randn(4)
    sums = [call_sums.call_sums(outside, (0,), True, lambda h: others.append(h))]
    others = []

    def inside(x):
        sums[0].add(x * 2)
        assert not fused_sums.fusible(x)
        return x.sum()

    torch.func.grad(inside)(torch.randn(4))
    assert len(others) == 1 and sums[0].calls == 0


def test_without_numba_it_goes_on_slower_and_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "plasticity.watching.fused_kernels", None)
    fused_sums._loops.cache_clear()
    try:
        with pytest.warns(UserWarning, match="Numba cannot be imported .*: watching units on a CPU takes"):
            assert type(call_sums.call_sums(torch.zeros(5, 3), (0,), False, refuse)) is FloatSums
        assert type(call_sums.call_sums(torch.zeros(5, 3), (0,), False, refuse)) is FloatSums  # once is enough
    finally:
        fused_sums._loops.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 50, 50)])
def test_values_that_are_not_finite_are_seen_in_the_sums(kind, shape):
    h = torch.ones(shape)
    h[2, 1], h[3, 2] = float("nan"), float("inf")
    h[:, 0] = -float("inf")
    sums = kind(h, tuple(d for d in range(len(shape)) if d != 1), True, refuse)
    sums.add(h)
    fired, total, magnitude = sums.sums()
    each = h.numel() // 3
    assert fired.tolist() == [0, each - each // 5, each]
    assert total[0] == -math.inf and magnitude[0] == math.inf
    assert total[1].isnan() and total[2] == magnitude[2] == math.inf


def test_nan_and_opposite_infinities_in_one_vector_of_a_processor():
    h = torch.zeros(2, 1, 64)
    h[0, 0, 3], h[1, 0, 40] = math.inf, -math.inf
    sums = FusedSums(h, (0, 2), True, refuse)
    sums.add(h)
    fired, total, magnitude = sums.sums()
    assert fired.tolist() == [1] and total.isnan().all() and magnitude.tolist() == [math.inf]
