"""A strategy's own training epoch is kept, and the quick one leaves nothing behind."""

import pickle
import warnings
from functools import partial

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from quick_runs import stream, train, with_optimizer

from plasticity.loading.epoch import quick_epoch


class OwnEpoch(Naive):
    """Trains in its own way."""

    def training_epoch(self, **kwargs):
        for batch in self.dataloader:
            self.mbatch = batch
            self._unpack_minibatch()
            self.optimizer.zero_grad()
            self.loss = self.forward().square().mean()
            self.loss.backward()
            self.optimizer_step()


def test_a_training_epoch_of_its_own_is_kept_and_it_says_so_once():
    with pytest.warns(UserWarning, match="keeps the training epoch of OwnEpoch") as caught:
        quick = train(True, strategy=with_optimizer(OwnEpoch))
    assert len([w for w in caught if "keeps the training epoch" in str(w.message)]) == 1
    slow = train(False, strategy=with_optimizer(OwnEpoch))
    assert all(torch.equal(a, b) for a, b in zip(quick[3], slow[3], strict=True)) and not quick[1]


def test_a_training_epoch_set_on_the_strategy_is_kept():
    strategy = train(True, strategy=with_optimizer(Naive))[0]
    mine = partial(lambda **kwargs: None)
    strategy.training_epoch = mine
    with pytest.warns(UserWarning, match="keeps the training epoch"):
        strategy.train(stream()[0])
    assert strategy.training_epoch is mine


class Interrupts(SupervisedPlugin):
    """Interrupts the training in its second iteration, once, and keeps the strategy that it was part of."""

    strategy = None

    def after_backward(self, strategy, **kwargs):
        if self.strategy is None and strategy.clock.train_iterations == 1:
            self.strategy = strategy
            raise KeyboardInterrupt


def test_after_an_interruption_the_strategy_trains_on():
    plugin = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        train(True, strategy=with_optimizer(Naive), plugins=lambda: [plugin])
    strategy = plugin.strategy
    assert vars(strategy)["training_epoch"].func is quick_epoch  # nobody could take it away
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "TensorLoaderPlugin keeps the training epoch")
        strategy.train(stream()[0])
    assert strategy.clock.train_iterations == 1 + 2 * 3  # the interrupted one is not counted
    assert "training_epoch" not in vars(strategy)


def test_the_strategy_can_be_pickled_between_experiences():
    strategy = train(True, strategy=with_optimizer(Naive), loggers=list)[0]
    other = pickle.loads(pickle.dumps(strategy.plugins[0]))
    strategy.plugins[0] = other
    strategy.train(stream()[0])
    assert "training_epoch" not in vars(strategy)
