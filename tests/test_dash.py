"""DASH against loops over weight vectors, and its pass over the new data."""

import random

import numpy as np
import pytest
import torch
from avalanche.training.plugins import ReplayPlugin, SupervisedPlugin
from stripping_streams import FixedHead
from torch import nn
from weight_methods import STATEFUL, MultiHead, Network, conv, copy_of, mlp, moved, naive, run, stream, trained

from plasticity.methods.dash import descent_direction, shrink_by_direction
from plasticity.plugins import DASHPlugin


def factor(weight, wanted, threshold):
    lengths = np.linalg.norm(weight) * np.linalg.norm(wanted)
    cosine = (weight * wanted).sum() / lengths if lengths > 1e-8 else 0.0
    return min(max(cosine, threshold), 1.0)


@pytest.mark.parametrize("optimizer", STATEFUL)
@pytest.mark.parametrize("build", [mlp, conv])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_against_a_loop_over_weight_vectors(build, optimizer, threshold):
    model, _, _ = trained(build, optimizer)
    before = copy_of(model)
    direction = {
        name: 0.5 * torch.randn_like(value) + value * (i % 2)
        for i, (name, value) in enumerate(model.named_parameters())
        if not isinstance(model[int(name[0])], nn.LayerNorm | nn.BatchNorm2d)
    }
    changed = shrink_by_direction(model, direction, threshold)
    assert {entry.name for entry in changed} == set(direction) >= moved(model, before)
    for name in direction:
        old, wanted = before[name].numpy(), direction[name].detach().numpy()
        expected = old.copy()
        if old.ndim == 1:
            expected *= factor(old, wanted, threshold)
        for row in np.ndindex(*old.shape[: 1 if old.ndim == 2 else 2]) if old.ndim > 1 else ():
            expected[row] *= factor(old[row], wanted[row], threshold)
        np.testing.assert_allclose(model.get_parameter(name).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_directions_average_negative_gradients_and_leave_those_of_the_model_alone():
    model = mlp()
    batches = [(torch.randn(4, 5), torch.randint(3, (4,))) for _ in range(3)]
    gradients = []
    for inputs, targets in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    kept = {name: p.grad for name, p in model.named_parameters()}
    direction = descent_direction(model, (nn.functional.cross_entropy(model(x), y) for x, y in batches), 0.3)
    assert set(direction) == {"0.weight", "0.bias", "2.weight", "4.weight", "4.bias"}
    for name, found in direction.items():
        expected = 0
        for each in gradients:
            expected = 0.7 * expected - 0.3 * each[name]
        torch.testing.assert_close(found, expected)
        assert model.get_parameter(name).grad is kept[name]
        assert torch.equal(kept[name], gradients[-1][name])


class Normalised(FixedHead):
    """With dropout and running statistics, which the pass must not touch."""

    def __init__(self):
        super().__init__()
        self.features.append(nn.Sequential(nn.BatchNorm1d(10), nn.Dropout(0.5)))


def test_the_pass_sees_the_new_data_once_and_leaves_no_trace():
    class Looks(DASHPlugin):
        def change(self, model, generator):
            before, states = copy_of(model), [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].sum()]
            seen, gradients = [], [parameter.grad for parameter in model.parameters()]
            handle = model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
            changed = super().change(model, generator)
            handle.remove()
            assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
            assert states[2] == np.random.get_state()[1].sum()
            for name, buffer in model.named_buffers():
                assert torch.equal(buffer, before[name])
            assert all(one is p.grad for one, p in zip(gradients, model.parameters(), strict=True))
            data = self._strategy.experience.dataset
            assert torch.equal(torch.cat(seen), torch.stack([sample[0] for sample in data]))
            assert [len(batch) for batch in seen] == [8, 8, 8]
            assert not moved(model, before) & {"features.5.0.weight", "features.5.0.bias"}
            return changed

    plugin = Looks()
    run([plugin, ReplayPlugin(mem_size=12)], Normalised)
    assert [(e["gradient_samples"], e["gradient_batches"]) for e in plugin.history] == [(24, 3)] * 2


def test_weights_shrink_as_the_gradients_of_the_new_data_say():
    """Step by step: one mini-batch of everything, so that the direction is the plain negative gradient."""
    plugin = DASHPlugin(batch_size=1000)
    torch.manual_seed(0)
    strategy = naive(FixedHead(), [plugin])
    benchmark = stream()
    strategy.train(benchmark.train_stream[0])
    before = copy_of(strategy.model)
    data = benchmark.train_stream[1].dataset
    inputs, targets = torch.stack([s[0] for s in data]), torch.tensor([s[1] for s in data])
    gradients = torch.autograd.grad(
        nn.functional.cross_entropy(strategy.model(inputs), targets), list(strategy.model.parameters())
    )
    found = {}

    class Looks(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            found.update(copy_of(strategy.model))

    strategy.plugins.insert(1, Looks())
    strategy.train(benchmark.train_stream[1])
    for (name, _), gradient in zip(strategy.model.named_parameters(), gradients, strict=True):
        old, wanted, expected = before[name].numpy(), -gradient.numpy(), before[name].numpy().copy()
        for row in range(len(old)) if old.ndim == 2 else ():
            expected[row] *= factor(old[row], wanted[row], 0.3)
        if old.ndim == 1:
            expected *= factor(old, wanted, 0.3)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-3, atol=1e-5)


def test_heads_that_the_new_data_do_not_reach_stay_and_labels_choose_the_head():
    plugin = DASHPlugin()
    torch.manual_seed(0)
    strategy = naive(MultiHead(), [plugin])
    benchmark = stream(task_labels=True)
    strategy.train(benchmark.train_stream[0])
    head = strategy.model.classifier.classifiers["0"].classifier.weight.detach().clone()
    strategy.train(benchmark.train_stream[1])
    assert torch.equal(strategy.model.classifier.classifiers["0"].classifier.weight[:2], head[:2])
    assert plugin.history[0]["parameters"] == 6  # both layers, and the new head


def test_a_growing_head_shrinks_too():
    plugin = DASHPlugin()
    run([plugin], Network)
    assert [entry["parameters"] for entry in plugin.history] == [6, 6]
