"""Every measure against a slow oracle in numpy or plain loops, hand-computed examples, and degenerate input."""

import copy
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from plasticity import measures
from plasticity.errors import UserError


@dataclass
class Counts:
    """What the measures read of a group's statistics."""

    fired: torch.Tensor
    count: int
    mean: torch.Tensor
    mean_abs: torch.Tensor


def counts(mean_abs, fired=None, count=100, device="cpu"):
    mean_abs = torch.tensor(mean_abs, dtype=torch.float64, device=device)
    fired = torch.zeros_like(mean_abs) if fired is None else torch.tensor(fired, device=device)
    return Counts(fired=fired.to(torch.int64), count=count, mean=mean_abs.clone(), mean_abs=mean_abs)


def network():
    """Two units, both dead, and eight, one of them dead: 0.5625 on average over layers, 0.3 over units."""
    return {"narrow": counts([0.0, 0.0], [0, 0]), "wide": counts([0.0, *[1.0] * 7], [0, 95, 94, 96, 100, 1, 50, 2])}


# Units


def dormant_by_loops(mean_abs, tau):
    finite = [value for value in mean_abs if math.isfinite(value)]
    average = math.fsum(finite) / len(finite) if finite else 0.0
    marks = []
    for value in mean_abs:
        if not math.isfinite(value):
            marks.append(False)
        elif average == 0:
            marks.append(True)
        else:
            marks.append(value / average <= tau)
    return marks


magnitudes = st.one_of(
    st.just(0.0), st.floats(1e-6, 1e6), st.sampled_from([math.nan, math.inf, 1.0, 0.025, 0.02499, 0.0251])
)


@given(st.lists(magnitudes, min_size=1, max_size=12), st.sampled_from([0.0, 0.01, 0.025, 0.1, 0.5, 1.0]))
def test_masks_agree_with_loops(values, tau):
    stat = counts(values)
    dead, dormant = measures.dead_units(stat), measures.dormant_units(stat, tau)
    assert dead.dtype == dormant.dtype == torch.bool
    assert dead.tolist() == [value == 0 for value in values]
    assert measures.nonfinite_units(stat).tolist() == [not math.isfinite(value) for value in values]
    finite = [value for value in values if math.isfinite(value)]
    average = math.fsum(finite) / len(finite) if finite else 0.0
    for value, mark, expected in zip(values, dormant.tolist(), dormant_by_loops(values, tau), strict=True):
        on_the_edge = average > 0 and math.isclose(value / average, tau, rel_tol=1e-12)
        assert mark == expected or on_the_edge


@given(st.lists(st.lists(magnitudes, min_size=1, max_size=9), min_size=1, max_size=4))
def test_network_fractions_count_units_equally(layers):
    stats = {str(number): counts(layer) for number, layer in enumerate(layers)}
    total = sum(len(layer) for layer in layers)
    dead = sum(value == 0 for layer in layers for value in layer)
    broken = sum(not math.isfinite(value) for layer in layers for value in layer)
    dormant = sum(int(measures.dormant_units(stat, 0.1).sum()) for stat in stats.values())
    assert float(measures.dead_fraction(stats)) == dead / total
    assert float(measures.nonfinite_fraction(stats)) == broken / total
    assert float(measures.dormant_fraction(stats, tau=0.1)) == dormant / total


def test_unequal_layers_by_hand():
    stats = network()
    assert float(measures.dead_fraction(stats)) == 0.3
    assert float(measures.over_active_fraction(stats)) == 0.3  # 95, 96 and 100 of 100, but not 94
    assert float(measures.over_active_fraction(stats, bound=1.0)) == 0.1
    per_layer = measures.by_layer(measures.dead_fraction, stats)
    assert {name: float(value) for name, value in per_layer.items()} == {"narrow": 1.0, "wide": 0.125}
    assert float(measures.dead_fraction(stats["wide"])) == 0.125


def test_dormancy_is_relative_to_the_layers_mean_by_hand():
    stat = counts([0.1, 3.9])  # mean 2: scores 0.05 and 1.95 (over the sum 4 they would be 0.025 and 0.975)
    assert measures.dormant_units(stat, 0.06).tolist() == [True, False]
    assert measures.dormant_units(stat, 0.04).tolist() == [False, False]
    small = {"small": counts([1e-9, 1e-9]), "large": counts([1.0, 1.0])}  # each layer by itself
    assert float(measures.dormant_fraction(small)) == 0.0
    assert measures.dormant_units(counts([0.025, 1.975])).tolist() == [True, False]  # exactly the default threshold


def test_a_layer_all_zero_is_all_dormant():
    assert float(measures.dormant_fraction(counts([0.0, 0.0, 0.0]), tau=0.0)) == 1.0


def test_over_active_holds_at_exactly_the_bound():
    for count in range(20, 2001, 20):
        at = count * 19 // 20
        stat = counts([1.0, 1.0], [at, at - 1], count=count)
        assert measures.over_active_units(stat, 0.95).tolist() == [True, False]
    for percent in range(1, 101):
        assert measures.over_active_units(counts([1.0], [percent]), percent / 100).item()
    big = 2**40 * 20  # counts far beyond what float32 holds
    assert measures.over_active_units(counts([1.0, 1.0], [19 * 2**40, 19 * 2**40 - 1], count=big)).tolist() == [1, 0]


def test_nonfinite_units_are_neither_dead_nor_dormant_and_do_not_hide_others():
    stat = counts([math.nan, math.inf, 0.0, 1.0], [0, 100, 0, 50])
    assert measures.dead_units(stat).tolist() == [False, False, True, False]
    assert measures.dormant_units(stat).tolist() == [False, False, True, False]
    assert measures.over_active_units(stat).tolist() == [False, True, False, False]
    assert float(measures.nonfinite_fraction(stat)) == 0.5
    assert measures.dormant_units(counts([math.nan, math.nan])).tolist() == [False, False]


def test_unobserved_groups_are_left_out():
    unseen = counts([math.nan, 0.0], count=0)
    stats = {"seen": counts([0.0, 1.0]), "unseen": unseen}
    assert float(measures.dead_fraction(stats)) == 0.5
    assert list(measures.by_layer(measures.dormant_fraction, stats, tau=0.1)) == ["seen"]
    masks = (measures.dead_units, measures.dormant_units, measures.over_active_units, measures.nonfinite_units)
    for mask in masks:
        assert mask(unseen).tolist() == [False, False]
    assert not measures.over_active_units(unseen, 0.0).any()


FRACTIONS = (
    measures.dead_fraction,
    measures.dormant_fraction,
    measures.over_active_fraction,
    measures.nonfinite_fraction,
)


@pytest.mark.parametrize("measure", FRACTIONS)
def test_nothing_to_measure_is_a_clear_error(measure):
    for nothing in ({}, {"empty": counts([])}):
        with pytest.raises(UserError, match="no hidden units"):
            measure(nothing)
        with pytest.raises(UserError, match="no hidden units"):
            measures.by_layer(measure, nothing)
    for unseen in ({"a": counts([0.0], count=0)}, counts([0.0], count=0)):
        with pytest.raises(UserError, match="no hidden unit was observed"):
            measure(unseen)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_fractions_outside_0_to_1_are_refused(value):
    stat = counts([1.0])
    for measure in (measures.dormant_units, measures.dormant_fraction):
        with pytest.raises(UserError, match="tau must be between 0 and 1"):
            measure(stat, tau=value)
    for measure in (measures.over_active_units, measures.over_active_fraction):
        with pytest.raises(UserError, match="bound must be between 0 and 1"):
            measure(stat, bound=value)
    with pytest.raises(UserError, match="share must be above 0"):
        measures.rank99(torch.ones(2, 2), share=value)


def test_results_are_float64_scalars_that_compare():
    for measure in FRACTIONS:
        value = measure(network())
        assert value.dim() == 0 and value.dtype == torch.float64
        assert 0.0 <= value <= 1.0


def test_statistics_and_models_are_measured_without_reading_back():
    # A tensor without data raises on everything that needs a value on the host.
    stats = {"a": counts([0.0, 1.0], device="meta"), "b": counts([2.0], device="meta")}
    for measure in FRACTIONS:
        assert measure(stats).device.type == "meta"
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to("meta")
    model(torch.ones(2, 3, 4, 4, device="meta")).sum().backward()
    initial = {name: torch.empty_like(parameter) for name, parameter in model.named_parameters()}
    for value in (
        measures.weight_magnitude(model),
        measures.gradient_norm(model),
        measures.distance_from_initialisation(model, initial),
    ):
        assert value.device.type == "meta" and value.shape == ()


# Feature matrices


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


# Models


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2)
    )


def norm_by_loops(tensors):
    return math.sqrt(math.fsum(float(value) ** 2 for tensor in tensors for value in tensor.flatten().tolist()))


def test_weight_magnitude_counts_weights_equally():
    model = small_model()
    weights = {name: model.get_submodule(name).weight.flatten().tolist() for name in ("0", "4", "5")}
    entries = [abs(value) for own in weights.values() for value in own]
    assert float(measures.weight_magnitude(model)) == pytest.approx(math.fsum(entries) / len(entries), rel=1e-12)
    per_layer = measures.weight_magnitude_by_layer(model)
    assert list(per_layer) == ["0", "4", "5"]
    for name, own in weights.items():
        assert float(per_layer[name]) == pytest.approx(math.fsum(map(abs, own)) / len(own), rel=1e-12)


def test_weight_magnitude_of_a_layer_alone_and_of_shared_weights():
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[1.0, -2.0], [3.0, -6.0]])
    assert float(measures.weight_magnitude(layer)) == 3.0
    assert {name: float(value) for name, value in measures.weight_magnitude_by_layer(layer).items()} == {"": 3.0}
    model = nn.Sequential(layer, nn.Linear(2, 2), nn.Linear(2, 3, bias=False))
    model[1].weight = layer.weight
    nn.init.zeros_(model[2].weight)
    assert float(measures.weight_magnitude(model)) == 12 / 10  # 4 shared weights and 6 zeros
    assert list(measures.weight_magnitude_by_layer(model)) == ["0", "2"]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_weight_magnitude_of_every_convolution(kind, dimensions):
    layer = getattr(nn, f"{kind}{dimensions}d")(2, 4, 3, groups=2)
    entries = [abs(value) for value in layer.weight.flatten().tolist()]
    value = measures.weight_magnitude(layer)
    assert float(value) == pytest.approx(math.fsum(entries) / len(entries), rel=1e-12)
    assert not value.requires_grad


def test_weight_magnitude_of_attention():
    for extra in ({}, {"kdim": 3, "vdim": 5}):
        attention = nn.MultiheadAttention(4, 2, **extra)
        names = [name for name, _ in attention.named_parameters() if name.endswith("weight")]
        entries = torch.cat([attention.get_parameter(name).detach().flatten() for name in names]).abs().double()
        assert len(names) == (4 if extra else 2)
        assert float(measures.weight_magnitude(attention)) == pytest.approx(float(entries.mean()), rel=1e-12)
        assert list(measures.weight_magnitude_by_layer(attention)) == ["", "out_proj"]


def test_weight_magnitude_is_of_the_weights_in_use_and_moves_nothing():
    masked = nn.Linear(2, 1)
    masked.weight.data = torch.tensor([[2.0, 4.0]])
    prune.custom_from_mask(masked, "weight", torch.tensor([[0.0, 1.0]]))
    assert float(measures.weight_magnitude(masked)) == 2.0
    torch.manual_seed(0)
    normalised = parametrizations.spectral_norm(nn.Linear(40, 40), n_power_iterations=1).train()
    before = copy.deepcopy(normalised.state_dict())
    value = measures.weight_magnitude(normalised)
    assert all(torch.equal(before[name], now) for name, now in normalised.state_dict().items())
    assert normalised.parametrizations.weight.training
    assert float(value) == pytest.approx(float(normalised.eval().weight.detach().double().abs().mean()), rel=1e-12)


def test_models_without_weights_are_a_clear_error():
    empty = nn.Linear(1, 3)
    empty.weight = nn.Parameter(torch.empty(3, 0))
    for model in (nn.Sequential(), nn.BatchNorm1d(3), empty):
        with pytest.raises(UserError, match="no linear or convolution layer"):
            measures.weight_magnitude(model)
        assert measures.weight_magnitude_by_layer(model) == {}


def test_lazy_layers_before_their_first_forward_pass():
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    with pytest.raises(UserError, match="layer 1 has no weights yet"):
        measures.weight_magnitude(model)
    initial = {"0.bias": model[0].bias.detach() - 1, "1.weight": torch.zeros(3, 2)}
    assert float(measures.distance_from_initialisation(model, initial)) == pytest.approx(math.sqrt(2))
    assert float(measures.gradient_norm(model)) == 0.0


def test_distance_from_initialisation_by_loops():
    model = small_model()
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert float(measures.distance_from_initialisation(model, initial)) == 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    moved = {name: parameter.detach().double() - initial[name].double() for name, parameter in model.named_parameters()}
    expected = norm_by_loops(moved.values())
    distance = measures.distance_from_initialisation(model, initial)
    assert float(distance) == pytest.approx(expected, rel=1e-12) and not distance.requires_grad
    per_layer = measures.distance_by_layer(model, initial)
    assert list(per_layer) == ["0", "1", "4", "5"]
    for layer, value in per_layer.items():
        own = [difference for name, difference in moved.items() if name.rpartition(".")[0] == layer]
        assert float(value) == pytest.approx(norm_by_loops(own), rel=1e-12)
    whole = {name: value.clone() for name, value in model.state_dict().items()}  # with buffers, which do not count
    assert float(measures.distance_from_initialisation(model, whole)) == 0.0


def test_parameters_that_grew_or_appeared_are_left_out_of_the_distance():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    model[1] = nn.Linear(2, 3)
    model.append(nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight[0, 0] += 3.0
        model[0].bias[1] -= 4.0
    assert float(measures.distance_from_initialisation(model, initial)) == pytest.approx(5.0, rel=1e-6)
    assert list(measures.distance_by_layer(model, initial)) == ["0"]


def test_initial_values_that_tell_nothing_are_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match="no parameter of Linear"):
        measures.distance_from_initialisation(model, {"other": torch.zeros(2, 2)})
    for live in (dict(model.named_parameters()), model.state_dict()):
        with pytest.raises(UserError, match="clone it"):
            measures.distance_from_initialisation(model, live)


def test_gradient_norm_by_loops():
    model = small_model()
    model[5].requires_grad_(False)
    assert float(measures.gradient_norm(model)) == 0.0
    model(torch.randn(3, 2, 4, 4)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(gradients) == 5
    assert float(measures.gradient_norm(model)) == pytest.approx(norm_by_loops(gradients.values()), rel=1e-12)
    per_layer = measures.gradient_norm_by_layer(model)
    assert list(per_layer) == ["0", "1", "4", "5"] and float(per_layer["5"]) == 0.0
    for layer in ("0", "1", "4"):
        own = [gradient for name, gradient in gradients.items() if name.rpartition(".")[0] == layer]
        assert float(per_layer[layer]) == pytest.approx(norm_by_loops(own), rel=1e-12)
    assert not measures.gradient_norm(model).requires_grad


def test_gradient_norm_of_sparse_half_complex_and_no_gradients():
    table = nn.Embedding(5, 1, sparse=True)
    table(torch.tensor([1, 1, 2])).sum().backward()  # row 1 has gradient 2, row 2 has 1
    assert float(measures.gradient_norm(table)) == pytest.approx(math.sqrt(5))
    half = nn.Linear(300, 300, bias=False).half()
    half.weight.grad = torch.full_like(half.weight, 300.0)  # the sum of squares is far beyond float16
    assert float(measures.gradient_norm(half)) == pytest.approx(90000.0, rel=1e-12)
    waves = nn.Linear(1, 1, bias=False, dtype=torch.complex64)
    waves.weight.grad = torch.tensor([[3 + 4j]])
    assert float(measures.gradient_norm(waves)) == pytest.approx(5.0)
    initial = {"weight": waves.weight.detach() - (3 + 4j)}
    assert float(measures.distance_from_initialisation(waves, initial)) == pytest.approx(5.0, rel=1e-6)
    assert float(measures.gradient_norm(nn.ReLU())) == 0.0
    assert measures.gradient_norm_by_layer(nn.ReLU()) == {}


def test_parametrised_layers_keep_their_own_name():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)), nn.Linear(2, 1))
    model(torch.ones(1, 3)).sum().backward()
    assert list(measures.gradient_norm_by_layer(model)) == ["0", "1"]
    assert list(measures.gradient_norm_by_layer(model[0])) == [""]


def test_a_diverged_model_is_measured_as_diverged():
    model = nn.Linear(2, 2)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    model.weight.data[0, 0] = math.nan
    model.weight.grad = torch.full((2, 2), math.inf)
    assert math.isnan(measures.weight_magnitude(model))
    assert math.isnan(measures.distance_from_initialisation(model, initial))
    assert math.isinf(measures.gradient_norm(model))
