"""Groups declared by hand serve plugins and metrics as groups that were found do."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from stripping_streams import Network, everything, naive, run, same, stream

from plasticity import UnitGroup, UserError, find_units
from plasticity.metrics import plasticity_metrics
from plasticity.plugins import HyperHypoPlugin, SynapticStrippingPlugin


def declared():
    return [
        UnitGroup("features.0", size=20, activation="relu", at="features.1", consumers=[("features.3", 1)]),
        UnitGroup("features.3", size=10, activation="relu", at="features.4", consumers=[("classifier.classifier", 1)]),
    ]


@pytest.mark.parametrize(
    "make",
    [
        SynapticStrippingPlugin,
        HyperHypoPlugin,
        lambda **named: HyperHypoPlugin("prune", **named),
        lambda **named: SynapticStrippingPlugin("whitaker2023", **named),
    ],
)
def test_plugins_treat_declared_groups_as_found_ones(make):
    names = [group.name for group in find_units(Network(), torch.rand(2, 8))]
    assert names == [group.name for group in declared()]
    found, by_hand = make(), make(groups=declared())
    assert same(everything(run([found])), everything(run([by_hand])))
    assert found.history == by_hand.history and found.history


def test_metrics_watch_declared_groups_as_found_ones():
    def values(**named):
        metrics = plasticity_metrics(epoch=True, experience=True, per_layer=True, **named)
        torch.manual_seed(0)
        strategy = naive(Network(), [])
        strategy.plugins = [plugin for plugin in strategy.plugins if plugin is not strategy.evaluator]
        strategy.evaluator = EvaluationPlugin(metrics, loggers=[])
        strategy.plugins.append(strategy.evaluator)
        for experience in stream().train_stream:
            strategy.train(experience)
            strategy.eval(stream().test_stream)
        return strategy.evaluator.get_all_metrics()

    found, by_hand = values(), values(groups=declared())
    units = [name for name in found if name.split("_")[0] in ("DeadUnits", "DormantUnits", "OverActiveUnits")]
    assert units and all(found[name] == by_hand[name] for name in units)


def test_a_declared_group_that_does_not_fit_is_refused_in_words():
    wrong = [UnitGroup("features.0", size=19, activation="relu", at="features.1")]
    with pytest.raises(UserError, match="19 units"):
        run([SynapticStrippingPlugin(groups=wrong)])
    missing = [UnitGroup("features.9", size=20, activation="relu", at="features.1")]
    with pytest.raises(UserError, match=r"features\.9"):
        run([SynapticStrippingPlugin(groups=missing)])
