"""Layer normalisation, other activations, and the slim ResNet that both can change."""

import copy
import pickle

import numpy as np
import pytest
import torch
from avalanche import models as avalanche_models
from torch import nn

from benchmarks.models import build_model
from plasticity import find_units
from plasticity.architecture import changes, with_activation, with_layer_norm
from plasticity.errors import UserError

INPUTS = {"mlp-3x128": (64,), "pairs-conv": (3, 32, 32), "slim-resnet18": (3, 32, 32)}


def model_and_example(name, heads):
    torch.manual_seed(0)
    model = build_model(name, 4, INPUTS[name], heads)
    x = torch.randn(4, *INPUTS[name])
    return model, (x, torch.zeros(4, dtype=torch.int64)) if heads else (x,)


def images():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(45, 6), nn.ReLU(), nn.Linear(6, 2))


def normalised(x, axes):
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5)


def plain_convolution(x, layer):
    weight, bias, stride = layer.weight.detach().numpy(), layer.bias.detach().numpy(), layer.stride[0]
    side = (x.shape[2] - 3) // stride + 1
    out = np.empty((len(x), len(weight), side, side))
    for i in range(side):
        for j in range(side):
            patch = x[:, :, stride * i : stride * i + 3, stride * j : stride * j + 3]
            out[:, :, i, j] = np.einsum("nchw,ochw->no", patch, weight) + bias
    return out


@pytest.mark.parametrize("training", [True, False])
def test_layer_normalisation_against_numpy(training):
    model = images().train(training)
    example = torch.randn(3, 3, 9, 9)
    changed = with_layer_norm(model, example)
    linear = model[6].weight.detach().numpy(), model[6].bias.detach().numpy()
    head = model[8].weight.detach().numpy(), model[8].bias.detach().numpy()
    x = np.maximum(normalised(plain_convolution(example.numpy(), model[0]), (1, 2, 3)), 0)
    x = np.maximum(normalised(plain_convolution(x, model[2]), (1, 2, 3)), 0).reshape(3, -1)
    x = np.maximum(normalised(x @ linear[0].T + linear[1], 1), 0)
    expected = x @ head[0].T + head[1]
    np.testing.assert_allclose(changed(example).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    (change,) = changes(changed)
    assert change.parameters_after - change.parameters_before == 2 * (4 + 6)
    assert change.details == "2 normalisers inserted, 1 put in place of others"
    assert all(module.training == training for module in changed.modules())


def test_leaky_relu_against_its_formula():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(6, 3)
    z = model[0](x)
    expected = model[2](torch.where(z > 0, z, 0.01 * z))
    torch.testing.assert_close(with_activation(model, x)(x), expected)
    expected = model[2](torch.where(z > 0, z, 0.3 * z))
    torch.testing.assert_close(with_activation(model, x, lambda: nn.LeakyReLU(0.3))(x), expected)
    assert find_units(with_activation(model, x, "prelu"), x)[0].activation == "prelu"
    assert changes(with_activation(model, x, "prelu"))[0].parameters_after == 5 * 3 + 5 + 12 + 1
    assert torch.equal(with_activation(model, x, "relu")(x), model(x))


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", list(INPUTS))
@pytest.mark.parametrize("change", [with_layer_norm, with_activation])
def test_every_benchmark_network_can_be_changed_and_trained(change, name, heads):
    model, example = model_and_example(name, heads)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    changed = change(model, example)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not changes(model)
    units, was = find_units(changed, example), find_units(model, example)
    assert [(g.name, g.size) for g in units] == [(g.name, g.size) for g in was]
    for group in units:
        if change is with_activation:
            assert group.activation == "leaky_relu"
        else:
            norms = {type(changed.get_submodule(write.norm)) for write in group.writes}
            assert norms <= {nn.LayerNorm, nn.GroupNorm}
    own = dict(model.named_parameters())
    for key, value in changed.named_parameters():
        assert key not in own or value is not own[key]
        assert key not in own or torch.equal(value, own[key])
    changed(*example).square().sum().backward()
    torch.optim.SGD(changed.parameters(), lr=1e-3).step()
    again = pickle.loads(pickle.dumps(changed))
    assert torch.equal(again.eval()(*example), changed.eval()(*example)) and changes(again) == changes(changed)


def test_layer_normalisation_is_not_done_twice():
    model, example = images(), torch.randn(3, 3, 9, 9)
    once = with_layer_norm(model, example)
    twice = with_layer_norm(once, example)
    assert torch.equal(once(example), twice(example))
    assert [change.parameters_after - change.parameters_before for change in changes(twice)] == [20, 0]


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Linear(4, 5), nn.RMSNorm(5), nn.ReLU(), nn.Linear(5, 3)),
        (nn.Conv2d(4, 6, 1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 3)),
        (nn.Conv2d(4, 6, 1), nn.InstanceNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 3)),
    ],
)
def test_other_normalisers_than_batch_normalisation_stay(layers):
    example = torch.randn(2, 4) if isinstance(layers[0], nn.Linear) else torch.randn(2, 4, 3, 3)
    changed = with_layer_norm(nn.Sequential(*layers), example)
    assert [type(module) for module in changed] == [type(module) for module in layers]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.act = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()

    def forward(self, x):
        return self.three(self.act(self.two(self.act(self.one(x)))))


def test_what_cannot_be_changed_is_refused_in_words():
    x = torch.randn(2, 3)
    for change in (with_layer_norm, with_activation):
        with pytest.raises(UserError, match="the relu of `one` is a function called in the model's own forward"):
            change(Functional(), x)
        with pytest.raises(UserError, match="no hidden units"):
            change(nn.Linear(3, 2), x)
    with pytest.raises(UserError, match="one module activates both `one` and `two`"):
        with_layer_norm(Shared(), x)
    with pytest.raises(UserError, match="unknown activation 'rellu'; there are: celu, elu"):
        with_activation(Shared(), x, "rellu")
    assert [g.activation for g in find_units(with_activation(Shared(), x, "tanh"), x)] == ["tanh", "tanh"]


@pytest.mark.parametrize("heads", [False, True])
def test_slim_resnet_is_avalanches_bit_for_bit(heads):
    model, example = model_and_example("slim-resnet18", heads)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    theirs = (avalanche_models.MTSlimResNet18 if heads else avalanche_models.SlimResNet18)(4)
    torch.randn(4, 3, 32, 32)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(model.state_dict()) == list(theirs.state_dict())
    for training in (True, False):
        assert torch.equal(model.train(training)(*example), theirs.train(training)(*example))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), theirs.state_dict().values(), strict=True)
    )
