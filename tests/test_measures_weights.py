"""Measures of models against plain loops, hand-computed examples, and degenerate input."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from plasticity import measures
from plasticity.errors import UserError
from plasticity.measures.scalars import working_type


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


def test_models_are_measured_without_reading_back():
    # A tensor without data raises on everything that needs a value on the host.
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to("meta")
    model(torch.ones(2, 3, 4, 4, device="meta")).sum().backward()
    initial = {name: torch.empty_like(parameter) for name, parameter in model.named_parameters()}
    for value in (
        measures.weight_magnitude(model),
        measures.gradient_norm(model),
        measures.distance_from_initialisation(model, initial),
    ):
        assert value.device.type == "meta" and value.shape == ()


class RefuseFloat64(TorchDispatchMode):
    """A device without float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            assert not isinstance(each, torch.Tensor) or each.dtype != torch.float64, func
        return result


def test_devices_without_float64(monkeypatch):
    assert working_type(torch.device("mps")) is torch.float32
    assert working_type(torch.device("cpu")) is torch.float64
    model = small_model()
    model(torch.randn(3, 2, 4, 4)).square().sum().backward()
    initial = {name: parameter.detach() + 1 for name, parameter in model.named_parameters()}
    compute = [
        lambda: measures.weight_magnitude(model),
        lambda: measures.gradient_norm(model),
        lambda: measures.distance_from_initialisation(model, initial),
    ]
    expected = [float(each()) for each in compute]
    monkeypatch.setattr("plasticity.measures.weights.working_type", lambda device: torch.float32)
    with RefuseFloat64():
        values = [each() for each in compute]
    assert [value.dtype for value in values] == [torch.float32] * 3
    assert [float(value) for value in values] == pytest.approx(expected, rel=1e-5)
