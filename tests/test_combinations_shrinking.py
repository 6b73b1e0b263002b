"""Methods beside demon pruning that removes units physically: everybody goes along, or is refused in words."""

import numpy as np
import pytest
import torch
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EWCPlugin,
    LwFPlugin,
    MASPlugin,
    ReplayPlugin,
    RWalkPlugin,
    SupervisedPlugin,
    SynapticIntelligencePlugin,
)
from demon_runs import Bookkeeping, demon, pruned
from plugin_pairs import BOTH_ORDERS, MOVERS, ordered
from stripping_streams import DEAD, FixedHead, Network, everything, run, stream

from plasticity.errors import UserError
from plasticity.plugins import (
    AdaptivePlugin,
    ContinualBackpropPlugin,
    GradientDormancyPlugin,
    HareTortoisePlugin,
    HyperHypoPlugin,
    NormalizeAndProjectPlugin,
    ReDoPlugin,
    SelfNormalizedResetsPlugin,
)

WIDTHS = {"features.0": 20, "features.3": 10}  # units of the two hidden layers of the network


def shrinking(**changes):
    return demon("shrink", **{"every": 4, **changes})


FOLLOW = {
    **MOVERS,
    "demon-pruning": lambda: demon("mask", every=5),
    "demon-pruning-shrink": lambda: demon("shrink", every=3, seed=1),
    "replay": lambda: ReplayPlugin(mem_size=12),
    "LwF": LwFPlugin,
}
KNOW_UNITS = {
    "redo": ReDoPlugin,
    "gradient-dormancy": GradientDormancyPlugin,
    "continual-backprop": ContinualBackpropPlugin,
    "self-normalized-resets": SelfNormalizedResetsPlugin,
    "adaptive": AdaptivePlugin,
    "hyper-hypo": HyperHypoPlugin,
    "EWC": lambda: EWCPlugin(1.0),
    "MAS": MASPlugin,
    "synaptic intelligence": lambda: SynapticIntelligencePlugin(1.0),
    "early stopping": lambda: EarlyStoppingPlugin(5, "train_stream"),
    "RWalk": RWalkPlugin,  # of which nothing is known but that it has numbers by names of parameters
}


@BOTH_ORDERS
@pytest.mark.parametrize("every", [4, "experience"])
@pytest.mark.parametrize("name", FOLLOW)
def test_others_go_along_when_units_are_removed(name, every, first):
    remover, other, check = shrinking(every=every), FOLLOW[name](), Bookkeeping()
    strategy = run([*ordered(remover, other, first), check], Network, stream(2), optimizer="adamw")
    removed = sum(entry["removed"] for entry in remover.history)
    if name == "demon-pruning-shrink":
        removed += sum(entry["removed"] for entry in other.history)
    if name == "plasticity-injection":  # the frozen head reads units that can then be masked alone
        assert pruned(remover) > 0
    elif name != "demon-pruning":  # which may be the first to prune them
        assert removed > 0
    assert sum(WIDTHS.values()) - sum(len(strategy.model.get_submodule(name).weight) for name in WIDTHS) == removed
    assert check.checks == 12 and all(bool(torch.isfinite(tensor).all()) for tensor in everything(strategy))


@BOTH_ORDERS
@pytest.mark.parametrize("name", KNOW_UNITS)
def test_who_knows_single_units_is_refused_before_the_first_step(name, first):
    other = KNOW_UNITS[name]()
    model = FixedHead()
    before = [value.clone() for value in model.state_dict().values()]
    with pytest.raises(UserError, match=f'{type(other).__name__} keeps numbers.*use mode="mask" beside it') as error:
        run(ordered(shrinking(), other, first), lambda: model)
    assert "\n" not in str(error.value)
    assert all(torch.equal(now, then) for now, then in zip(model.state_dict().values(), before, strict=True))


class Survivors(SupervisedPlugin):
    """Keeps by hand what a removal leaves, from the numbers that the remover reports.

    Attributes:
        left: The first numbers of the units that are left, by layer.
    """

    def __init__(self, remover):
        super().__init__()
        self.remover, self.seen = remover, 0
        self.left = {name: np.arange(width) for name, width in WIDTHS.items()}

    def after_training_iteration(self, strategy, **kwargs):
        for entry in self.remover.history[self.seen :]:
            for name, numbers in entry["units"].items():
                self.left[name] = np.delete(self.left[name], numbers)
        self.seen = len(self.remover.history)

    def of(self, name, value):
        """What is left of a parameter that had its first shape."""
        one, two = self.left["features.0"], self.left["features.3"]
        rows = {"features.0": one, "features.3": two}.get(name.rpartition(".")[0])
        columns = {"features.3.weight": one, "classifier.weight": two}.get(name)
        value = value if rows is None else value[rows]
        return value if columns is None else value[:, columns]


@BOTH_ORDERS
@pytest.mark.parametrize("name", ["l2-init", "shrink-perturb-step", "shrink-perturb-interpolate"])
def test_initial_values_of_what_is_left_stay_what_they_were(name, first):
    remover, other = shrinking(), FOLLOW[name]()
    survivors = Survivors(remover)
    torch.manual_seed(0)
    start = {key: value.detach().clone() for key, value in FixedHead().named_parameters()}
    run([*ordered(remover, other, first), survivors], FixedHead)
    assert len(survivors.left["features.0"]) <= 20 - DEAD
    assert set(other.initial) == set(start)
    for key, value in other.initial.items():
        assert torch.equal(value, survivors.of(key, start[key])), key


class SlowTortoise(Survivors):
    """The moving average of every parameter, step by step, cut by hand."""

    def __init__(self, remover, momentum):
        super().__init__(remover)
        self.momentum, self.average = momentum, {}

    def follow_removal(self, strategy, removal):
        """Follows by hand, after the iteration."""

    def before_training_iteration(self, strategy, **kwargs):
        if not self.average:
            self.average = {name: value.detach().double() for name, value in strategy.model.named_parameters()}

    def after_update(self, strategy, **kwargs):
        for name, value in strategy.model.named_parameters():
            mixed = self.momentum * self.average[name] + (1 - self.momentum) * value.detach().double()
            self.average[name] = mixed

    def after_training_iteration(self, strategy, **kwargs):
        before = {name: numbers.copy() for name, numbers in self.left.items()}
        super().after_training_iteration(strategy, **kwargs)
        kept = {name: np.flatnonzero(np.isin(before[name], numbers)) for name, numbers in self.left.items()}
        for name, value in self.average.items():
            rows, columns = kept.get(name.rpartition(".")[0]), None
            columns = {"features.3.weight": "features.0", "classifier.weight": "features.3"}.get(name)
            value = value if rows is None else value[rows]
            self.average[name] = value if columns is None else value[:, kept[columns]]


@BOTH_ORDERS
def test_the_tortoise_is_the_average_of_what_is_left(first):
    remover = shrinking(noise_std=0.0)  # which comes before the average, or after it
    tortoise = HareTortoisePlugin(momentum=0.9, reset_every=None)
    slow = SlowTortoise(remover, 0.9)
    strategy = run([*ordered(remover, tortoise, first), slow], FixedHead)
    assert len(slow.left["features.0"]) <= 20 - DEAD and tortoise.model_is_tortoise
    for name, value in strategy.model.named_parameters():
        np.testing.assert_allclose(value.detach(), slow.average[name], rtol=1e-4, atol=1e-6)


class Norms(SupervisedPlugin):
    """Looks after every iteration whether weights have the norm that they had after the latest removal."""

    def __init__(self):
        super().__init__()
        self.expected, self.removals, self.checks = {}, 0, 0

    def before_training_iteration(self, strategy, **kwargs):
        for name in ("features.0", "features.3"):
            weight = strategy.model.get_submodule(name).weight.detach()
            shape, norm = self.expected.get(name, (None, None))
            if shape != weight.shape:
                self.removals += shape is not None
                self.expected[name] = weight.shape, float(weight.norm())
            else:
                assert float(weight.norm()) == pytest.approx(norm, rel=1e-5)
                self.checks += 1


@BOTH_ORDERS
def test_normalize_and_project_keeps_the_norm_of_what_is_left(first):
    remover, check = shrinking(regularisation=0.05, noise_std=0.0), Norms()
    run([*ordered(remover, NormalizeAndProjectPlugin(), first), check], FixedHead)
    assert check.removals >= 1 and check.checks > 20
