"""Normalize-and-project: norms as at the start, against numpy."""

import numpy as np
import pytest
import torch
from avalanche.models import SlimResNet18
from avalanche.training.plugins import SupervisedPlugin
from stripping_streams import FixedHead
from torch import nn
from weight_methods import STATEFUL, Network, conv, copy_of, everything, mlp, moved, naive, run, same, stream, trained

from plasticity.methods.normalize_and_project import draw_back, grown_norm, project
from plasticity.methods.parameters import trainable
from plasticity.plugins import NormalizeAndProjectPlugin


@pytest.mark.parametrize("optimizer", STATEFUL)
@pytest.mark.parametrize("build", [mlp, conv])
def test_directions_stay_and_norms_are_set(build, optimizer):
    model, optimizer, _ = trained(build, optimizer)
    before, state = copy_of(model), {p: dict(s) for p, s in optimizer.state.items()}
    entries = trainable(model, ("weight",))
    targets = [0.5 + number for number in range(len(entries))]
    project([entry.parameter for entry in entries], [torch.tensor(target**2) for target in targets])
    for entry, target in zip(entries, targets, strict=True):
        old = before[entry.name].numpy()
        expected = old * target / np.linalg.norm(old)
        np.testing.assert_allclose(entry.parameter.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    assert moved(model, before) == {entry.name for entry in entries}
    assert {p: dict(s) for p, s in optimizer.state.items()} == state


def test_zeros_stay_zeros():
    weight = torch.zeros(3, 4)
    project([weight], [torch.tensor(4.0)])
    assert weight.eq(0).all()
    project([], [])


class NormsHold(SupervisedPlugin):
    """Looks after every update whether each weight has the norm that it had when it was first seen."""

    def __init__(self):
        super().__init__()
        self.rows, self.checks = {}, 0

    def before_training_exp(self, strategy, **kwargs):
        for name, module in strategy.model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                squares = module.weight.detach().flatten(1).double().square().sum(1)
                known = self.rows.get(name, squares[:0])
                self.rows[name] = torch.cat([known, squares[len(known) :]])

    def after_update(self, strategy, **kwargs):
        for name, squares in self.rows.items():
            norm = float(strategy.model.get_submodule(name).weight.detach().norm())
            assert norm == pytest.approx(float(squares.sum().sqrt()), rel=1e-4)
            self.checks += 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("model", [Network, FixedHead])
def test_norms_hold_through_a_run_and_new_classes_add_theirs(model, optimizer):
    check = NormsHold()
    run([NormalizeAndProjectPlugin(), check], model, optimizer=optimizer)
    assert check.checks == 18 * 3


def test_convolutions_and_normalisers():
    check = NormsHold()
    run(
        [NormalizeAndProjectPlugin(), check],
        lambda: SlimResNet18(4, nf=4),
        stream(2, size=8, shape=(3, 32, 32)),
        train_epochs=1,
    )
    assert check.checks == 2 * 21  # a mini-batch in each experience


def test_where_nothing_moves_it_changes_nothing_but_rounding():
    def still(plugins):
        torch.manual_seed(0)
        strategy = naive(FixedHead(), plugins)
        strategy.optimizer.param_groups[0].update(lr=0.0)
        for experience in stream().train_stream:
            strategy.train(experience)
        return strategy

    with_plugin, without = still([NormalizeAndProjectPlugin()]), still([])
    for one, other in zip(everything(with_plugin), everything(without), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_norm_that_is_to_be_kept_grows_and_starts_anew():
    weight = torch.randn(4, 3)
    known = (torch.tensor(7.0), torch.Size((2, 3)))
    assert float(grown_norm(known, weight)) == pytest.approx(7 + float(weight[2:].square().sum()), rel=1e-5)
    assert float(grown_norm((torch.tensor(7.0), weight.shape), weight)) == 7
    for other in None, (torch.tensor(7.0), torch.Size((5, 3))), (torch.tensor(7.0), torch.Size((3,))):
        assert float(grown_norm(other, weight)) == pytest.approx(float(weight.square().sum()), rel=1e-5)


def test_normalisers_are_drawn_to_their_initial_values():
    one, begin = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])
    draw_back([one], [begin], 0.25)
    assert torch.equal(one, torch.tensor([2.5, 1.0]))

    class Normalised(FixedHead):
        def __init__(self):
            super().__init__()
            self.features.append(nn.LayerNorm(10))

    def distance(strategy):
        norm = strategy.model.features[5]
        return float((norm.weight - 1).detach().norm() + norm.bias.detach().norm())

    left, drawn = (run([NormalizeAndProjectPlugin(normaliser_decay=d)], Normalised) for d in (0.0, 1.0))
    assert distance(drawn) == 0 < distance(left)
    assert not same(everything(left), everything(drawn))
