"""Ranks of feature matrices against slow oracles in numpy, hand-computed examples, and degenerate input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plasticity import measures
from plasticity.errors import UserError


def effective_rank_by_loops(matrix):
    values = [float(value) for value in np.linalg.svd(matrix, compute_uv=False)]
    total = math.fsum(values)
    return math.exp(-math.fsum(v / total * math.log(v / total) for v in values if v > 0)) if total else 0.0


def stable_rank_by_norms(matrix):
    largest = np.linalg.norm(matrix, 2)
    return np.linalg.norm(matrix, "fro") ** 2 / largest**2 if largest else 0.0


def rank_by_loops(matrix, share):
    values = sorted((float(value) for value in np.linalg.svd(matrix, compute_uv=False)), reverse=True)
    total = math.fsum(values)
    for k in range(1, len(values) + 1):
        if total and math.fsum(values[:k]) >= share * total * (1 - 1e-12):
            return k
    return 0


def participation_by_covariance(matrix, centred):
    rows = matrix - matrix.mean(0) if centred else matrix
    covariance = rows.T @ rows
    square = np.trace(covariance @ covariance)
    return np.trace(covariance) ** 2 / square if square else 0.0


MATRICES = {
    "wide": lambda r: r.normal(size=(7, 30)),
    "tall": lambda r: r.normal(size=(60, 9)),
    "square": lambda r: r.uniform(size=(20, 20)),
    "rectified": lambda r: np.maximum(r.normal(size=(200, 40)) - 0.5, 0),
    "low rank": lambda r: r.normal(size=(50, 3)) @ r.normal(size=(3, 25)),
    "steep spectrum": lambda r: r.normal(size=(40, 16)) * 10.0 ** -np.arange(16),
    "dead columns": lambda r: r.normal(size=(30, 12)) * (np.arange(12) % 3 == 0),
    "one sample": lambda r: r.normal(size=(1, 8)),
    "one feature": lambda r: r.normal(size=(8, 1)),
    "far from zero": lambda r: 1e3 + r.normal(size=(50, 5)),
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("seed", range(3))
def test_ranks_agree_with_numpy(kind, seed):
    matrix = MATRICES[kind](np.random.default_rng(seed))
    features = torch.from_numpy(matrix)
    assert float(measures.effective_rank(features)) == pytest.approx(effective_rank_by_loops(matrix), rel=1e-9)
    assert float(measures.stable_rank(features)) == pytest.approx(stable_rank_by_norms(matrix), rel=1e-9)
    for share in (0.5, 0.9, 0.99):
        assert float(measures.rank99(features, share)) == rank_by_loops(matrix, share)
    assert float(measures.rank99(features)) == rank_by_loops(matrix, 0.99)
    for centred in (False, True):
        if centred and len(matrix) == 1:
            continue  # numpy leaves rounding noise there; ours is 0, see below
        expected = participation_by_covariance(matrix, centred)
        assert float(measures.participation_ratio(features, centred)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("value", [-0.01, 0.0, 1.01, math.nan, math.inf])
def test_shares_outside_0_to_1_are_refused(value):
    with pytest.raises(UserError, match="share must be above 0"):
        measures.rank99(torch.ones(2, 2), share=value)


RANKS = (measures.effective_rank, measures.stable_rank, measures.rank99, measures.participation_ratio)


def test_ranks_by_hand():
    diagonal = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0]))  # shares 1/2, 1/4, 1/8, 1/8: entropy 1.75 bits
    assert float(measures.effective_rank(diagonal)) == pytest.approx(2**1.75, rel=1e-12)
    assert float(measures.stable_rank(diagonal)) == pytest.approx(22 / 16, rel=1e-12)
    assert [float(measures.rank99(diagonal, share)) for share in (0.5, 0.51, 0.75, 0.875, 0.88, 1.0)] == [
        *[1, 2, 2, 3, 4, 4],
    ]
    assert float(measures.participation_ratio(diagonal, centred=False)) == pytest.approx(22**2 / 274, rel=1e-12)
    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + 100.0  # a round cloud far from 0
    assert float(measures.participation_ratio(corners)) == pytest.approx(2.0, rel=1e-12)
    assert float(measures.participation_ratio(corners, centred=False)) == pytest.approx(1.0, abs=1e-3)


def test_singular_values_are_not_squared_in_the_99_percent_rank():
    features = torch.diag(torch.tensor([10.0, 1.0]))  # 10/11 of the sum is 91%, but 100/101 of the squares is 99.01%
    assert float(measures.rank99(features)) == 2.0


def test_rounding_decides_no_tie():
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        orthogonal, _ = torch.linalg.qr(torch.randn(100, 100, dtype=torch.float64, generator=generator))
        for share in (0.5, 0.7, 0.9, 0.99):
            assert float(measures.rank99(orthogonal, share)) == round(100 * share)
        assert float(measures.effective_rank(orthogonal)) == pytest.approx(100.0)


@pytest.mark.parametrize("rank", RANKS)
def test_degenerate_matrices_have_defined_values(rank):
    for shape in ((1, 1), (1, 5), (5, 1), (6, 4)):
        assert float(rank(torch.zeros(shape))) == 0.0
    one_sample = 0.0 if rank is measures.participation_ratio else 1.0  # centred, a single sample does not vary
    assert float(rank(torch.tensor([[0.1, 0.7, -3.0]]))) == pytest.approx(one_sample)
    for samples in (2, 3, 7, 50):
        row = torch.rand(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(samples))
        assert float(rank(row.expand(samples, 8))) == pytest.approx(one_sample)


def test_a_huge_constant_feature_hides_no_variance():
    rows = [[1e300, 1.0, 0.0], [1e300, -1.0, 0.0], [1e300, 0.0, 1.0], [1e300, 0.0, -1.0]]
    features = torch.tensor(rows, dtype=torch.float64)
    assert float(measures.participation_ratio(features)) == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_entries_give_nan(rank, bad):
    features = torch.ones(6, 4)
    features[2, 1] = bad
    assert math.isnan(rank(features))
    assert math.isnan(rank(torch.full((3, 3), bad)))
    assert math.isnan(rank(torch.tensor([[bad]])))


@pytest.mark.parametrize("rank", RANKS)
def test_what_is_no_feature_matrix_is_refused(rank):
    for features in (torch.ones(5), torch.ones(2, 3, 4), torch.ones(2, 3, 4, 4), torch.tensor(1.0)):
        with pytest.raises(UserError, match="two dimensions"):
            rank(features)
    with pytest.raises(UserError, match="NoneType"):
        rank(None)
    for features in (torch.ones(0, 4), torch.ones(4, 0), torch.ones(3, 3, dtype=torch.complex64)):
        with pytest.raises(UserError, match="real and not empty"):
            rank(features)


@settings(deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 2**31),
    st.sampled_from([1e-300, 1e-160, 1e-8, 1.0, 1e8, 1e160, 1e300]),
)
def test_ranks_do_not_depend_on_scale_order_or_side(rows, columns, seed, scale):
    features = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for rank in RANKS:
        value = float(rank(features))
        assert float(rank(features * scale)) == pytest.approx(value, rel=1e-6)
        assert float(rank(features.flip(0).flip(1))) == pytest.approx(value, rel=1e-6)
        if rank is not measures.participation_ratio:
            assert float(rank(features.T)) == pytest.approx(value, rel=1e-6)
            assert 1 - 1e-9 <= value <= min(rows, columns) + 1e-9


def test_ranks_take_any_real_type_and_leave_the_graph_alone():
    values = torch.randint(0, 5, (12, 6), generator=torch.Generator().manual_seed(0))
    for rank in RANKS:
        expected = rank(values.double())
        assert expected.dtype == torch.float64 and expected.shape == ()
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64):
            assert rank(values.to(dtype)) == expected
        assert not rank(values.float().requires_grad_()).requires_grad


def test_singular_values_survive_a_solver_that_does_not_converge(monkeypatch):
    rng = np.random.default_rng(0)
    matrices = [torch.from_numpy(rng.normal(size=shape)) for shape in ((40, 9), (9, 40))]
    expected = [[float(rank(each)) for rank in RANKS] for each in matrices]
    calls = []

    def fail(matrix):
        calls.append(matrix)
        raise torch.linalg.LinAlgError("linalg.svd: the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    for each, values in zip(matrices, expected, strict=True):
        assert [float(rank(each)) for rank in RANKS] == pytest.approx(values, rel=1e-7)
    assert len(calls) == 2 * len(RANKS)
    assert [float(rank(torch.zeros(4, 3))) for rank in RANKS] == [0.0] * 4
    assert all(math.isnan(rank(torch.full((4, 3), math.nan))) for rank in RANKS)


def test_a_rank_is_a_float32_where_the_device_has_no_float64(monkeypatch):
    features = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    expected = [float(rank(features)) for rank in RANKS]
    monkeypatch.setattr("plasticity.measures.ranks.working_type", lambda device: torch.float32)
    values = [rank(features) for rank in RANKS]
    assert [value.dtype for value in values] == [torch.float32] * 4
    assert [float(value) for value in values] == pytest.approx(expected, rel=1e-6)
