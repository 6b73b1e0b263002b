"""Spectral regularisation against exact singular values and autograd."""

import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from stripping_streams import FixedHead
from torch import nn
from weight_methods import STATEFUL, conv, everything, mlp, run, same, stream, trained

from plasticity.methods.parameters import trainable
from plasticity.methods.spectral_regularization import (
    SpectralRule,
    add_spectral_gradient,
    spectral_penalty,
    start_vector,
)
from plasticity.plugins import SpectralRegularizationPlugin


def exact(model, k, strength, biases=True, normalisers=True):
    """The penalty by PyTorch's singular values, differentiable."""
    total = 0
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            total = total + (torch.linalg.matrix_norm(module.weight.flatten(1), 2) ** k - 1) ** 2
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d) and normalisers:
            total = total + (module.weight.abs().max() ** k - 1) ** 2
        if getattr(module, "bias", None) is not None and biases:
            total = total + module.bias.norm() ** (2 * k)
    return strength * total


@pytest.mark.parametrize("optimizer", STATEFUL)
@pytest.mark.parametrize("build", [mlp, conv])
@pytest.mark.parametrize("options", [{}, {"power": 1}, {"power": 3, "biases": False}, {"normalisers": False}], ids=str)
def test_gradients_against_exact_ones(build, optimizer, options):
    model, _, probe = trained(build, optimizer)
    model.eval()  # BatchNorm as it is: the same outputs twice
    rule = SpectralRule(0.2, **options)
    entries = [entry for entry in trainable(model) if rule.role(entry)]
    generator = torch.Generator().manual_seed(0)
    vectors = {e.name: start_vector(e, generator, 3000) for e in entries if rule.role(e) == "matrix"}
    parameters = [parameter for _, parameter in model.named_parameters()]
    named = {name.replace("power", "k"): value for name, value in options.items()}
    penalty = exact(model, **{"k": 2, "strength": 0.2, **named})
    assert float(spectral_penalty(entries, rule)) == pytest.approx(float(penalty.detach()), rel=1e-4)
    for scale in 1.0, 256.0:
        model.zero_grad()
        loss = model(probe.batches[0][0]).square().mean()
        expected = torch.autograd.grad(scale * (loss + penalty), parameters, retain_graph=True)
        (scale * loss).backward()
        add_spectral_gradient(entries, vectors, rule, torch.tensor(scale))
        for parameter, wanted in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=2e-3, atol=2e-3 * scale)


def test_one_step_of_power_iteration_in_numpy():
    weight = torch.randn(4, 3, 2)
    layer = nn.Conv1d(3, 4, 2, bias=False)
    layer.weight = nn.Parameter(weight.clone())
    entry = trainable(layer)[0]
    u = torch.randn(4)
    layer.weight.grad = torch.zeros_like(weight)
    vectors = {"weight": u.clone()}
    add_spectral_gradient([entry], vectors, SpectralRule(0.5), torch.tensor(1.0))
    matrix = weight.numpy().reshape(4, 6)
    v = matrix.T @ u.numpy()
    v /= np.linalg.norm(v)
    after = matrix @ v
    sigma = np.linalg.norm(after)
    after /= sigma
    np.testing.assert_allclose(vectors["weight"].numpy(), after, rtol=1e-4, atol=1e-6)
    expected = 0.5 * 2 * (sigma**2 - 1) * 2 * sigma * np.outer(after, v)
    np.testing.assert_allclose(layer.weight.grad.numpy().reshape(4, 6), expected, rtol=1e-3, atol=1e-4)


def test_vectors_follow_the_weights_of_a_run_and_grow_with_a_head():
    class Follows(SupervisedPlugin):
        errors = []

        def before_update(self, strategy, **kwargs):
            for name, vector in plugin.vectors.items():
                weight = strategy.model.get_parameter(name).detach()
                true = float(torch.linalg.matrix_norm(weight, 2))
                Follows.errors.append(abs(float((vector @ weight).norm()) - true) / true)

    plugin = SpectralRegularizationPlugin(1e-3)
    run([plugin, Follows()], experiences=stream(3))
    assert len(plugin.vectors["classifier.classifier.weight"]) == 6
    assert len(Follows.errors) == 18 * 3 and np.median(Follows.errors) < 1e-3 and max(Follows.errors) < 0.2


def test_it_holds_singular_values_near_one():
    def grown_network():
        model = FixedHead()
        with torch.no_grad():
            model.features[3].weight.mul_(4), model.features[3].bias.zero_(), model.features[0].bias.zero_()
        return model

    def largest(strategy):
        return float(torch.linalg.matrix_norm(strategy.model.features[3].weight.detach(), 2))

    without = largest(run([], grown_network, train_epochs=20))
    plugin = SpectralRegularizationPlugin(0.02)
    assert abs(largest(run([plugin], grown_network, train_epochs=20)) - 1) < 0.2 < abs(without - 1)


def test_a_gradient_in_a_run_is_that_of_the_penalty():
    """One update: the difference to a run without is the learning rate times the exact gradient."""

    def one_step(plugins):
        strategy = run(
            plugins, FixedHead, experiences=stream(1), shuffle=False, train_epochs=1, train_mb_size=24, optimizer="sgd"
        )
        return strategy.model

    torch.manual_seed(0)
    model = FixedHead()
    gradients = torch.autograd.grad(exact(model, 2, 1e-4), list(model.parameters()))
    mine, theirs = one_step([SpectralRegularizationPlugin(1e-4)]), one_step([])
    for one, other, gradient in zip(mine.parameters(), theirs.parameters(), gradients, strict=True):
        torch.testing.assert_close(other - one, 0.02 * gradient, rtol=0.02, atol=2e-6)
    assert not same(everything(run([SpectralRegularizationPlugin()])), everything(run([])))
    assert float(max(gradient.abs().max() for gradient in gradients)) * 0.02 > 1e-4


def test_a_network_that_has_diverged_is_told_as_such():
    plugin = SpectralRegularizationPlugin(100.0)
    run([plugin])
    assert plugin.history[-1]["penalty"] is None
