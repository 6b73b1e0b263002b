"""Demon pruning beside other plugins."""

import pytest
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EWCPlugin,
    MASPlugin,
    ReplayPlugin,
    SynapticIntelligencePlugin,
)
from demon_runs import MODES, Bookkeeping, demon, pruned
from stripping_streams import DEAD, FixedHead, MasksHold, run

from plasticity.errors import UserError
from plasticity.plugins import HyperHypoPlugin, L2InitPlugin, ReDoPlugin, SynapticStrippingPlugin


@MODES
def test_beside_replay(mode):
    plugin, check = demon(mode, every=3), Bookkeeping()
    run([ReplayPlugin(16), plugin, check], evaluate=True)
    assert pruned(plugin) >= DEAD and check.checks >= 18


@MODES
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_beside_stripping_on_the_same_layers(mode, first, optimizer):
    stripping, plugin = SynapticStrippingPlugin(every=2, rounds=1), demon(mode, every=5)
    looks, check = MasksHold(stripping), Bookkeeping()
    plugins = [stripping, plugin] if first else [plugin, stripping]

    class Holds(MasksHold):
        def after_update(self, strategy, **kwargs):
            for name in self.stripping.masks:
                weight = strategy.model.get_submodule(name).weight
                kept = self.stripping.masks.kept(strategy.model, name)
                assert not weight[~kept].any()
                self.checks += 1

    looks = Holds(stripping)
    run([*plugins, looks, check], train_epochs=4, optimizer=optimizer)
    assert sum(entry["connections"] for entry in stripping.history) > 0 and pruned(plugin) > 0 and looks.checks > 5
    if mode == "mask":  # masks of a unit go with it
        assert stripping.masks.removed() > 0


@MODES
@pytest.mark.parametrize(
    "other",
    [
        lambda: EWCPlugin(1.0),
        MASPlugin,
        lambda: SynapticIntelligencePlugin(1.0),
        HyperHypoPlugin,
        lambda: HyperHypoPlugin("prune"),
        lambda: ReDoPlugin(every=2),
        lambda: EarlyStoppingPlugin(5, "train_stream"),
    ],
)
def test_plugins_that_know_single_weights_are_refused_by_shrinking_alone(mode, other):
    other = other()
    if mode == "mask":
        if not isinstance(other, EarlyStoppingPlugin):
            run([other, demon(mode)], evaluate=True)
        return
    with pytest.raises(UserError, match=f'but {type(other).__name__} keeps numbers.*mode="mask"'):
        run([other, demon(mode)], FixedHead)


def test_l2_init_starts_anew_for_what_has_shrunk():
    plugin = demon("shrink", every="experience")
    run([plugin, L2InitPlugin()])
    assert pruned(plugin) >= DEAD
