"""What comes first in a step: the update, then what methods do to weights; what is removed counts for nothing."""

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from demon_runs import demon
from stripping_streams import DEAD, FixedHead, run, stream
from test_strategies import small_run

from plasticity.groups import unwrap
from plasticity.plugins import (
    ContinualBackpropPlugin,
    L2InitPlugin,
    NormalizeAndProjectPlugin,
    ShrinkPerturbPlugin,
    SynapticStrippingPlugin,
)


class Steps(SupervisedPlugin):
    """Keeps weights and gradients as they are right before every update."""

    def __init__(self):
        super().__init__()
        self.weights, self.gradients = [], []

    def before_update(self, strategy, **kwargs):
        parameters = list(strategy.model.parameters())
        self.weights.append([p.detach().clone() for p in parameters])
        self.gradients.append([p.grad.clone() for p in parameters])


@pytest.mark.parametrize("last", [True, False])
def test_shrink_and_perturb_comes_after_the_update(last):
    """theta <- (1 - decay) * (theta - lr * velocity), and so on from there; SGD with momentum by hand."""
    steps, plugin = Steps(), ShrinkPerturbPlugin("step", decay=0.3, noise=0.0)
    strategy = run([plugin, steps] if last else [steps, plugin], FixedHead, [stream().train_stream[0]])
    expected = [value.clone() for value in steps.weights[0]]
    velocity = [torch.zeros_like(value) for value in expected]
    for number, gradients in enumerate(steps.gradients):
        for value, found in zip(expected, steps.weights[number], strict=True):
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)
        velocity = [0.9 * v + g + 1e-2 * w for v, g, w in zip(velocity, gradients, expected, strict=True)]
        expected = [0.7 * (w - 0.02 * v) for w, v in zip(expected, velocity, strict=True)]
    assert number == 5
    for value, found in zip(expected, strategy.model.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), value, rtol=1e-4, atol=1e-6)


class FreshUnits(SupervisedPlugin):
    """Looks after every update whether units that are new in it have outgoing weights of 0, whatever was learned."""

    def __init__(self, plugin):
        super().__init__()
        self.plugin, self.checks = plugin, 0

    def after_update(self, strategy, **kwargs):
        known = self.plugin.state_dict()["units"]
        first, second = (known[name]["age"] == 0 for name in ("features.0", "features.3"))
        assert not strategy.model.features[3].weight[~second][:, first].any()  # new readers draw all their weights
        assert not strategy.model.classifier.weight[:, second].any()
        self.checks += int(first.sum() + second.sum())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_units_are_made_new_after_the_update(optimizer):
    """Not before it: a gradient that was computed for the old unit, and momentum, would move the new one at once."""
    plugin = ContinualBackpropPlugin(replacement_rate=0.05, maturity=2)
    check = FreshUnits(plugin)
    run([plugin, check], FixedHead, optimizer=optimizer)
    assert check.checks > 5


class NormsOfWhatIsLeft(SupervisedPlugin):
    """Looks after every update whether each layer is as long as it was when the experience began."""

    def __init__(self):
        super().__init__()
        self.checks = 0

    def before_training_exp(self, strategy, **kwargs):
        self.first = getattr(self, "first", {layer: layer.weight.norm().item() for layer in self.layers(strategy)})

    @staticmethod
    def layers(strategy):
        return [strategy.model.features[0], strategy.model.features[3], strategy.model.classifier]

    def after_update(self, strategy, **kwargs):
        for layer in self.layers(strategy):
            assert layer.weight.norm().item() == pytest.approx(self.first[layer], rel=1e-4)
            self.checks += 1


@pytest.mark.parametrize("first", [True, False])
def test_what_is_removed_counts_for_no_norm(first):
    """Momentum that the authors' rule leaves moves removed connections away from 0 in the update."""
    projecting = NormalizeAndProjectPlugin()
    stripping = SynapticStrippingPlugin("whitaker2023", fraction=0.3, max_row_sparsity=1.0)
    check = NormsOfWhatIsLeft()
    pair = [projecting, stripping] if first else [stripping, projecting]
    run([*pair, check], FixedHead)
    assert stripping.masks.removed() > 0 and check.checks == 18 * 3


class PrunedIsStill(SupervisedPlugin):
    """Looks whether what is pruned has no gradient in the update, and no moments after it."""

    def __init__(self, plugin):
        super().__init__()
        self.plugin, self.checks = plugin, 0

    def after_update(self, strategy, **kwargs):
        parameters = dict(unwrap(strategy.model).named_parameters())
        kept = {f"{name}.weight": self.plugin.masks.kept(strategy.model, name) for name in self.plugin.masks}
        kept.update(self.plugin.pruned.vectors)
        for name, mask in kept.items():
            parameter = parameters[name]
            assert not parameter.grad[~mask].any(), name
            for value in strategy.optimizer.state[parameter].values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    assert not value[~mask].any(), name
            self.checks += int((~mask).any())


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_demon_pruning_has_pruned_takes_no_part_in_updates(optimizer, first):
    """Though a penalty pulls it to its initial values in every step."""
    plugin, penalty = demon(every=2), L2InitPlugin(strength=0.1)
    check = PrunedIsStill(plugin)
    pair = [plugin, penalty] if first else [penalty, plugin]
    run([*pair, check], FixedHead, optimizer=optimizer)
    assert sum(entry["masked"] for entry in plugin.history) >= DEAD and check.checks > 10


def test_the_first_network_of_fresh_is_that_of_naive():
    """So both begin alike, and the first experience is the same in both."""
    (_, naive), (_, fresh) = small_run("naive", experiences=2), small_run("fresh", experiences=2)
    assert all(torch.equal(naive[0][name], fresh[0][name]) for name in naive[0])
    assert any(not torch.equal(naive[1][name], fresh[1][name]) for name in naive[1])
