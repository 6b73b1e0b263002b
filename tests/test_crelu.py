"""CReLU: the module, and networks rewritten with it at an equal number of parameters."""

import copy

import numpy as np
import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from stripping_streams import MultiHead, Network, everything, same, stream
from test_architecture import INPUTS, Functional, images, model_and_example
from torch import nn

from plasticity import find_units, surgery, watch
from plasticity.architecture import CReLU, changes, with_activation, with_crelu, with_layer_norm
from plasticity.architecture.rewriting import parameter_count
from plasticity.errors import UserError


def vectors(width=64):
    layers = [nn.Linear(10, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width // 2, 3))


def test_the_module():
    x = torch.tensor([[1.0, -2.0, 0.0]])
    assert CReLU(-1)(x).tolist() == [[1, 0, 0, 0, 2, 0]]
    images = torch.randn(2, 3, 4, 4)
    expected = np.concatenate([np.maximum(images.numpy(), 0), np.maximum(-images.numpy(), 0)], 1)
    np.testing.assert_array_equal(CReLU(-3)(images).numpy(), expected)


def with_weights_of(changed, model):
    """Give a network with CReLU of full width weights that do not look at negative halves."""
    own = model.state_dict()
    with torch.no_grad():
        for key, value in changed.state_dict().items():
            if value.shape == own[key].shape:
                value.copy_(own[key])
            else:
                assert value.shape[1] == 2 * own[key].shape[1]
                value.zero_()[:, : own[key].shape[1]] = own[key]
    return changed


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", list(INPUTS))
def test_that_looks_at_positive_halves_alone_is_the_network_with_relu(name, heads):
    model, example = model_and_example(name, heads)
    changed = with_weights_of(with_crelu(model, example, width=1.0), model)
    torch.testing.assert_close(changed.eval()(*example), model.eval()(*example))


def test_with_batch_normalisation_too():
    model, example = images(), torch.randn(5, 3, 9, 9)
    changed = with_weights_of(with_crelu(model, example, width=1.0), model)
    torch.testing.assert_close(changed(example), model(example))


def test_that_takes_the_difference_of_halves_is_linear():
    model = images()
    model[3] = nn.Identity()
    example = torch.randn(5, 3, 9, 9)
    changed = with_weights_of(with_crelu(model, example, width=1.0), model)
    for layer in (changed[2], changed[6], changed[8]):
        half = layer.weight.shape[1] // 2
        layer.weight.data[:, half:] = -layer.weight.data[:, :half]
    linear = nn.Sequential(*[nn.Identity() if isinstance(module, nn.ReLU) else module for module in model])
    torch.testing.assert_close(changed(example), linear(example), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", list(INPUTS))
def test_every_benchmark_network_keeps_its_number_of_parameters(name, heads):
    model, example = model_and_example(name, heads)
    before = copy.deepcopy(model.state_dict())
    changed = with_crelu(model, example)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    (change,) = changes(changed)
    assert change.parameters_before == sum(p.numel() for p in model.parameters())
    assert change.parameters_after == sum(p.numel() for p in changed.parameters())
    assert abs(change.parameters_after / change.parameters_before - 1) < 0.01
    was = find_units(model, example)
    for group, old in zip(find_units(changed, example), was, strict=True):
        assert group.name == old.name and 0.68 < group.size / old.size < 0.75
        assert group.private == old.private
        assert [c.columns_per_unit for c in group.readers] == [2 * c.columns_per_unit for c in old.readers]
    for key, buffer in changed.named_buffers():
        if "active_units" in key:
            buffer.fill_(1)  # as when the task has begun
    changed(*example).square().sum().backward()
    for weight in changed.parameters():
        rows = weight.grad.flatten(1) if weight.dim() > 1 else weight.grad[:, None]
        assert rows.any(1).all()  # no unit is dead


@pytest.mark.parametrize(("model", "example"), [(vectors(), (4, 10)), (images(), (2, 3, 9, 9))])
def test_the_width_is_the_one_that_fits_best(model, example):
    example = torch.randn(example)
    changed = with_crelu(model, example)
    target, missed = parameter_count(model), abs(parameter_count(changed) - parameter_count(model))
    for width in np.linspace(0.5, 1, 26):
        other = parameter_count(with_crelu(model, example, width=float(width)))
        assert abs(other - target) >= missed
    if target > 2000:
        assert missed / target < 0.01


def test_the_same_seed_gives_the_same_network():
    model, example = vectors(), torch.randn(4, 10)
    found = []
    for width in (None, None, 0.5):
        torch.manual_seed(3)
        found.append(with_crelu(model, example, width))
    assert same(list(found[0].parameters()), list(found[1].parameters()))
    sizes = [group.size for group in find_units(found[0], example)]
    torch.manual_seed(3)  # the search for the width drew nothing
    first = nn.Linear(10, sizes[0])
    assert torch.equal(found[0][0].weight, first.weight)
    assert [group.size for group in find_units(found[2], example)] == [32, 16]


def test_the_two_halves_are_one_unit():
    model, example = vectors(), torch.randn(6, 10)
    changed = with_crelu(model, example).eval()
    units = find_units(changed, example)
    with torch.no_grad():
        changed[0].bias[0], changed[0].bias[1] = -100, 100
        changed[0].weight[2], changed[0].bias[2] = 0, 0
        with watch(changed, units) as activity:
            changed(example)
    stats = activity.statistics()["0"]
    assert stats.count == 12 and stats.fired[:3].tolist() == [6, 6, 0]
    z = changed[0](example)
    torch.testing.assert_close(stats.mean_abs, z.abs().double().mean(0) / 2, check_dtype=False)
    before = changed(example)
    surgery.reinitialise(changed, units["0"], [2])
    assert changed[0].weight[2].any() and torch.equal(changed(example), before)
    surgery.silence(changed, units["0"], [0, 1])
    after = changed(example)
    assert not torch.equal(after, before)
    changed[0].weight.data[:2].normal_()
    assert torch.equal(changed(example), after)


@pytest.mark.parametrize("model", [Network, MultiHead])
def test_heads_of_avalanche_go_on_growing(model):
    def run():
        torch.manual_seed(0)
        network = model()
        x = torch.rand(4, 8)
        example = (x, torch.zeros(4, dtype=torch.int64)) if model is MultiHead else (x,)
        network = with_crelu(network, example)
        width = find_units(network, example)[-1].size
        strategy = Naive(
            model=network,
            optimizer=torch.optim.Adam(network.parameters()),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=8,
            evaluator=None,
        )
        for experience in stream(task_labels=model is MultiHead).train_stream:
            strategy.train(experience)
        heads = [m.classifier for m in strategy.model.modules() if isinstance(m, IncrementalClassifier)]
        assert len(heads) == (3 if model is MultiHead else 1)
        assert all(head.in_features == head.weight.shape[1] == 2 * width for head in heads)
        return everything(strategy)

    assert same(run(), run())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()

    def forward(self, x):
        x = self.act(self.one(x))
        return self.three(x + self.two(x))


class FixedShape(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.act = nn.Conv1d(4, 4, 3), nn.Linear(8, 2), nn.ReLU()

    def forward(self, x):
        return self.two(self.act(self.one(x)).reshape(-1, 8))


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (Functional(), (2, 3), "the relu of `one` is a function"),
        (Residual(), (2, 4), "units of `one`: `three` reads it combined"),
        (FixedShape(), (2, 4, 4), "does not run|gives outputs of shape"),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), (2, 4), "activated by Tanh and not by nn.ReLU"),
        (nn.Sequential(nn.Linear(4, 4), CReLU(), nn.Linear(8, 2)), (2, 4), "activated by CReLU and not by nn.ReLU"),
        (
            nn.Sequential(nn.Conv1d(2, 4, 1), nn.ReLU(), nn.Conv1d(4, 4, 1, groups=4), nn.Flatten(), nn.Linear(12, 2)),
            (2, 2, 3),
            "`2` is not a plain Linear or Conv layer",
        ),
        (nn.Linear(4, 4), (2, 4), "no hidden units"),
    ],
)
def test_what_cannot_be_rewritten_is_refused_in_words(model, shape, words):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=words):
        with_crelu(model, torch.randn(shape))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_order_of_changes():
    for name in ("mlp-3x128", "slim-resnet18"):
        model, example = model_and_example(name, False)
        both = with_layer_norm(with_crelu(model, example), example)
        assert [change.name for change in changes(both)] == ["crelu", "layer-norm"]
        assert both(*example).shape == (4, 4)
        with pytest.raises(UserError, match=r"normalises it together|do it before layer-norm"):
            with_crelu(with_layer_norm(model, example), example)
    with pytest.raises(UserError, match="cannot be exchanged"):
        with_activation(with_crelu(model, example), example)
    with pytest.raises(UserError, match="width must be above 0"):
        with_crelu(model, example, width=0)
