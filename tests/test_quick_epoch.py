"""The quick epoch must do what Avalanche's own does: the same calls, values and weights, whoever listens."""

import warnings

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training import supervised
from avalanche.training.plugins import LwFPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from quick_runs import Every, assert_same, train, with_optimizer
from torch.utils.data import DataLoader, TensorDataset

from plasticity.loading.epoch import comes_unpacked, takes_quick_epoch
from plasticity.loading.loader import TensorLoader
from plasticity.plugins import ReDoPlugin

STRATEGIES = {
    "naive": (Naive, {}),
    "cumulative": (supervised.Cumulative, {}),
    "ewc": (supervised.EWC, {"ewc_lambda": 0.5}),
    "synaptic intelligence": (supervised.SynapticIntelligence, {"si_lambda": 0.1}),
    "agem": (supervised.AGEM, {"patterns_per_exp": 4, "sample_size": 4}),
    "gem": (supervised.GEM, {"patterns_per_exp": 4}),
    "mas": (supervised.MAS, {}),
    "lwf": (supervised.LwF, {"alpha": 1.0, "temperature": 2.0}),
    "replay": (supervised.Replay, {"mem_size": 6}),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_event_value_and_weight_is_that_of_avalanches_loop(name):
    kind, options = STRATEGIES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="avalanche")
        runs = [train(quick, strategy=with_optimizer(kind, **options)) for quick in (True, False)]
    assert_same(*runs)
    assert takes_quick_epoch(runs[0][0]) and "training_epoch" not in vars(runs[0][0])


METRICS = {
    "none": (list, list),
    "accuracy, loss": (
        lambda: [accuracy_metrics(minibatch=True, epoch=True, epoch_running=True), loss_metrics(epoch=True)],
        list,
    ),
    "of two events": (lambda: [Every()], list),
    "published by a plugin": (list, lambda: [ReDoPlugin(every=2, tau=0.5)]),
    "replay": (lambda: [accuracy_metrics(minibatch=True)], lambda: [ReplayPlugin(mem_size=6), LwFPlugin()]),
}


@pytest.mark.parametrize("name", METRICS)
def test_every_value_reaches_the_loggers_at_the_same_event(name):
    metrics, plugins = METRICS[name]
    runs = [train(q, strategy=with_optimizer(Naive), metrics=metrics, plugins=plugins) for q in (True, False)]
    assert_same(*runs)
    assert name == "none" or len({line[0] for line in runs[0][2]}) > 1


class OwnEvent(Naive):
    """Does something of its own at an event, which includes telling its plugins."""

    def _before_forward(self, **kwargs):
        self.own = getattr(self, "own", 0) + 1
        super()._before_forward(**kwargs)


class OwnParts(Naive):
    """Has a forward pass, a loss and a step of its own."""

    def forward(self):
        return 2 * super().forward()

    def criterion(self):
        return super().criterion() + 1

    def optimizer_step(self):
        super().optimizer_step()
        self.steps = getattr(self, "steps", 0) + 1

    def _unpack_minibatch(self):
        super()._unpack_minibatch()
        self.mbatch[0] = -self.mbatch[0]


@pytest.mark.parametrize("kind", [OwnEvent, OwnParts])
def test_what_a_strategy_does_itself_is_done(kind):
    runs = [train(quick, strategy=with_optimizer(kind)) for quick in (True, False)]
    assert_same(*runs)
    count = [getattr(run[0], "own", None) or run[0].steps for run in runs]
    assert count == [14, 14]


def test_a_mini_batch_is_unpacked_unless_it_comes_from_tensors_on_the_same_device():
    strategy = train(True, strategy=with_optimizer(Naive))[0]
    dataset = TensorDataset(torch.rand(4, 6), torch.arange(4))
    strategy.dataloader = DataLoader(dataset)
    assert not comes_unpacked(strategy)
    strategy.dataloader = TensorLoader(DataLoader(dataset), "cpu")
    assert comes_unpacked(strategy)
    strategy._unpack_minibatch = lambda: None
    assert not comes_unpacked(strategy)
    del strategy._unpack_minibatch
    strategy.device = torch.device("meta")
    assert not comes_unpacked(strategy)
