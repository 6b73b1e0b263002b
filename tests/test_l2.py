"""L2 and L2 Init against the penalty as a term of the loss."""

import pytest
import torch
from stripping_streams import FixedHead
from torch import nn
from weight_methods import STATEFUL, conv, everything, mlp, run, same, stream, trained

from plasticity.methods.l2 import PRESETS, add_l2_gradient, l2_penalty
from plasticity.methods.l2_init import add_regenerative_gradient
from plasticity.methods.parameters import UNNORMALISED_KINDS, InitialValues, trainable
from plasticity.plugins import L2InitPlugin, L2Plugin


class Normalised(FixedHead):
    """With a normaliser, whose scale and shift no penalty touches."""

    def __init__(self):
        super().__init__()
        self.features.append(nn.LayerNorm(10))


class TermOfTheLoss(L2Plugin):
    """The penalty written down, differentiated by PyTorch."""

    def __init__(self, strength, initial):
        super().__init__(strength)
        self.from_initial, self.begin = initial, None

    def before_backward(self, strategy, **kwargs):
        parameters = {n: p for n, p in strategy.model.named_parameters() if not n.startswith("features.5")}
        if self.begin is None:
            self.begin = {name: value.detach().clone() * self.from_initial for name, value in parameters.items()}
        for name, parameter in parameters.items():
            strategy.loss = strategy.loss + self.strength * (parameter - self.begin[name]).square().sum()

    def after_backward(self, strategy, **kwargs):
        pass


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("plugin", [L2Plugin, L2InitPlugin])
def test_a_run_is_that_with_the_penalty_in_the_loss(plugin, optimizer):
    mine = run([plugin(0.02)], Normalised, optimizer=optimizer, shuffle=False)
    reference = TermOfTheLoss(0.02, plugin is L2InitPlugin)
    theirs = run([reference], Normalised, optimizer=optimizer, shuffle=False)
    for one, other in zip(everything(mine), everything(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not same(everything(mine), everything(run([], Normalised, optimizer=optimizer, shuffle=False)))


@pytest.mark.parametrize("optimizer", STATEFUL)
@pytest.mark.parametrize("build", [mlp, conv])
def test_gradients_against_autograd(build, optimizer):
    model, _, probe = trained(build, optimizer)
    initial = InitialValues(UNNORMALISED_KINDS)
    initial.update(build())  # other values than the network's own
    initial._model = None
    entries = initial.update(model)
    parameters, targets = [e.parameter for e in entries], [initial[e.name] for e in entries]
    for scale in 1.0, 1024.0:
        model.zero_grad()
        loss = model(probe.batches[0][0]).square().mean()
        total = loss + 0.3 * sum((p - t).square().sum() for p, t in zip(parameters, targets, strict=True))
        expected = torch.autograd.grad(scale * total, parameters)
        (scale * model(probe.batches[0][0]).square().mean()).backward()
        add_regenerative_gradient(parameters, targets, 0.3, torch.tensor(scale))
        for parameter, wanted in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-4 * scale)
    penalty = 0.3 * sum((p - t).square().sum() for p, t in zip(parameters, targets, strict=True))
    assert float(l2_penalty(parameters, targets, 0.3)) == pytest.approx(float(penalty.detach()), rel=1e-5)
    assert float(l2_penalty([], None, 0.3)) == 0


def test_parameters_without_a_gradient_are_left_alone():
    one, idle = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    one.grad = torch.zeros(3)
    add_l2_gradient([one, idle], None, 0.5, torch.tensor(1.0))
    assert torch.equal(one.grad, torch.ones(3)) and idle.grad is None
    add_l2_gradient([idle], None, 0.5, torch.tensor(1.0))
    assert idle.grad is None


def test_normalisers_are_left_out_and_other_parameters_are_not():
    model = conv()
    kinds = {entry.kind for entry in L2Plugin(1).entries(model)} | {e.kind for e in L2InitPlugin(1).entries(model)}
    assert kinds == {"weight", "bias"}
    names = {entry.name for entry in L2InitPlugin(1).entries(model)}
    assert {entry.name for entry in trainable(model)} - names == {"1.weight", "1.bias"}


def test_the_authors_code_halves_the_penalty():
    assert PRESETS["kumar2023"] * 2 == PRESETS["default"] == 1e-2
    for plugin in L2Plugin, L2InitPlugin:
        assert plugin().strength == 1e-2
        assert plugin(preset="kumar2023").strength == 5e-3
        assert plugin(0.5, preset="kumar2023").strength == 0.5


def test_it_draws_back_to_where_the_network_began_and_new_classes_to_where_they_came():
    """With a strong pull everything ends near the values that it had when it was first seen, grown rows too."""
    distances = {}
    for strength in (0.0, 5.0):
        plugin = L2InitPlugin(strength or 1e-12)
        strategy = run([plugin], experiences=stream(2), train_epochs=20)
        values = {name: value.clone() for name, value in plugin.initial.items()}
        assert values["classifier.classifier.weight"].shape[0] == 4
        assert not torch.equal(*values["classifier.classifier.weight"].split(2))
        moved = [(value - dict(strategy.model.named_parameters())[name]).norm() for name, value in values.items()]
        distances[strength] = float(torch.stack(moved).norm())
    assert distances[5.0] < 0.3 * distances[0.0]
    assert plugin.history[-1]["penalty"] == pytest.approx(5 * distances[5.0] ** 2, rel=1e-4)
