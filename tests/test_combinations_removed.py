"""Methods beside those that remove units or connections for good: what is removed stays removed, and is left alone."""

import pytest
import torch
from avalanche.training.plugins import (
    EWCPlugin,
    SupervisedPlugin,
    SynapticIntelligencePlugin,
)
from demon_runs import demon, pruned
from plugin_pairs import BOTH_ORDERS, MOVERS, ordered
from stripping_streams import DEAD, FixedHead, Network, everything, run, stream
from torch import nn

from plasticity.plugins import (
    AdaptivePlugin,
    ContinualBackpropPlugin,
    DemonPruningPlugin,
    GradientDormancyPlugin,
    HareTortoisePlugin,
    HyperHypoPlugin,
    L2InitPlugin,
    PlasticityInjectionPlugin,
    ReDoPlugin,
    SelfNormalizedResetsPlugin,
    SynapticStrippingPlugin,
)

MOVE = {
    **MOVERS,
    "redo": lambda: ReDoPlugin(every=3, tau=0.5),
    "gradient-dormancy": lambda: GradientDormancyPlugin(every=3, tau=0.5, batches=2),
    "continual-backprop": lambda: ContinualBackpropPlugin(replacement_rate=0.06, maturity=2),
    "self-normalized-resets": lambda: SelfNormalizedResetsPlugin(maximum_age=24, check_every=2, maximum_share=0.2),
    "adaptive": lambda: AdaptivePlugin(dead=0.0, every=3),
    "stripping-reinitialise": lambda: SynapticStrippingPlugin(every=3, fallback="reinitialise"),
    "demon-pruning": lambda: DemonPruningPlugin(every=5, noise_std=0.1, gate="none", seed=1),
    "EWC": lambda: EWCPlugin(1.0),
}


class AllRemovedStaysRemoved(SupervisedPlugin):
    """Looks before every forward pass whether all that demon pruning has masked is 0: weights, biases, normalisers."""

    def __init__(self, plugin):
        super().__init__()
        self.plugin, self.checks = plugin, 0

    def before_forward(self, strategy, **kwargs):
        removed = {f"{name}.weight": ~self.plugin.masks.kept(strategy.model, name) for name in self.plugin.masks}
        removed.update({name: ~kept for name, kept in self.plugin.pruned.vectors.items()})
        for name, where in removed.items():
            assert not strategy.model.get_parameter(name)[where].any(), name
            self.checks += "bias" in name

    before_eval_forward = before_forward


class Normalised(Network):
    """The same with BatchNorm, whose scale and shift are removed with a unit."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.features.insert(1, nn.BatchNorm1d(20))
        with torch.no_grad():
            self.features[1].bias[:DEAD] = -20.0


@BOTH_ORDERS
@pytest.mark.parametrize("name", MOVE)
def test_what_demon_pruning_masked_stays_removed_whoever_moves_weights(name, first):
    plugin = demon(every=2)
    check = AllRemovedStaysRemoved(plugin)
    run([*ordered(plugin, MOVE[name](), first), check], Normalised, stream(2), evaluate=True)
    assert pruned(plugin) >= DEAD and check.checks >= 10


RENEW = {
    "redo": lambda: ReDoPlugin(every=3, tau=1.0),
    "gradient-dormancy": lambda: GradientDormancyPlugin(every=3, tau=1.0, batches=2),
    "continual-backprop": lambda: ContinualBackpropPlugin(replacement_rate=0.2, maturity=1),
    "self-normalized-resets": lambda: SelfNormalizedResetsPlugin(maximum_age=30, check_every=1, maximum_share=1.0),
    "hyper-hypo": lambda: HyperHypoPlugin(percent=50),
}


@BOTH_ORDERS
@pytest.mark.parametrize("removing", ["demon-pruning", "hyper-hypo"])
@pytest.mark.parametrize("name", RENEW)
def test_units_that_are_gone_are_left_alone(name, removing, first):
    """They would be chosen first: they are 0, or contribute nothing, and so is their gradient."""
    remover = demon(every=2) if removing == "demon-pruning" else HyperHypoPlugin("prune", percent=20)
    other = RENEW[name]()
    gone = {}

    class BeforeTheLast(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            if strategy.experience.current_experience == 1:
                units = remover.pruned if removing == "hyper-hypo" else remover.pruned.units
                gone.update({name: set(mask.nonzero().flatten().tolist()) for name, mask in units.items()})

    run([*ordered(remover, other, first), BeforeTheLast()], FixedHead)
    assert len(gone["features.0"]) >= 4
    last = [entry["units"] for entry in other.history if entry["experience"] == 2]
    for units in last:
        assert not any(gone.get(name, set()) & set(numbers) for name, numbers in units.items())
    if name not in ("self-normalized-resets",):  # whose units need not be silent
        assert any(numbers for units in last for numbers in units.values())


@BOTH_ORDERS
def test_noise_without_a_gate_leaves_stripped_connections_alone(first):
    stripping = SynapticStrippingPlugin(every=2, rounds=1)
    noisy = DemonPruningPlugin(noise_std=0.1, regularisation=0.0, gate="none", every=1000)
    checks = []

    class Holds(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            for name in stripping.masks:
                weight = strategy.model.get_submodule(name).weight
                checks.append(bool((weight[~stripping.masks.kept(strategy.model, name)] == 0).all()))

    run([*ordered(stripping, noisy, first), Holds()])
    assert stripping.masks.removed() > 0 and all(checks)


# --- plasticity injection ------------------------------------------------------------------------------------------


@BOTH_ORDERS
@pytest.mark.parametrize(
    "remover", [lambda: HyperHypoPlugin("prune", percent=20), lambda: SynapticStrippingPlugin("whitaker2023")]
)
def test_a_new_head_has_no_removed_connections_and_leaves_the_outputs(remover, first):
    removing, injection = remover(), PlasticityInjectionPlugin(2)
    check = []

    class Zero(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            for name in removing.masks:
                weight = strategy.model.get_submodule(name).weight
                check.append(bool((weight[~removing.masks.kept(strategy.model, name)] == 0).all()))

    run([*ordered(removing, injection, first), Zero()], FixedHead)
    assert removing.masks.removed() > 0 and check and all(check)
    assert injection.history[0]["output_shift"] < 1e-6


@BOTH_ORDERS
def test_a_new_head_begins_anew_for_who_knows_its_values(first):
    injection, tortoise, pull = PlasticityInjectionPlugin(1), HareTortoisePlugin(), L2InitPlugin()
    seen = []

    class Look(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            if injection.history and not seen:
                for name, value in strategy.model.named_parameters():
                    if name.startswith(("features.3", "classifier")):
                        seen.append(torch.equal(tortoise.tortoise.values[name], value))
                        seen.append(torch.equal(pull.initial[name], value))
                    else:
                        seen.append(not torch.equal(pull.initial[name], value))

    run(
        [*ordered(injection, tortoise, first), pull, Look()] if first else [tortoise, pull, injection, Look()],
        FixedHead,
    )
    assert len(seen) == 2 * 4 + 2 and all(seen)


# --- partial training ----------------------------------------------------------------------------------------------


@BOTH_ORDERS
def test_synaptic_intelligence_sees_the_gradients_of_what_does_not_learn(first):
    adapting, intelligence = HyperHypoPlugin(percent=10), SynapticIntelligencePlugin(1.0)
    strategy = run(ordered(adapting, intelligence, first), FixedHead)
    assert len(adapting.history) == 2
    assert all(bool(torch.isfinite(value.data).all()) for value in intelligence.ewc_data[1].values())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in everything(strategy))
