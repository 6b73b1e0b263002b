"""Compiled networks run uncompiled while somebody watches, and compiled again when nobody does any more."""

import copy
import gc
import itertools

import pytest
import torch
import torch._dynamo
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from metric_cases import Silent, mlp, stream
from torch import nn

from plasticity.metrics import plasticity_metrics
from plasticity.plugins import ContinualBackpropPlugin
from plasticity.tracing.preserve import Uncompiled


def compiling():
    return torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_several_end_in_any_order(order):
    blocks = [Uncompiled() for _ in range(3)]
    for block in blocks:
        block.enter()
        block.enter()  # once is enough
    for number in order:
        assert not compiling()
        blocks[number].leave()
        blocks[number].leave()
    assert compiling()
    with Uncompiled():
        assert not compiling()
    assert compiling()


def test_one_that_nobody_holds_has_ended_and_a_copy_has_not_begun():
    block = Uncompiled()
    block.enter()
    del block
    gc.collect()
    assert compiling()
    block = Uncompiled()
    block.enter()
    twin = copy.deepcopy(block)
    twin.leave()
    assert not compiling()
    block.leave()
    assert compiling()


def test_after_watched_passes_of_several_observers_networks_are_compiled_again():
    seen = []

    class Look(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            seen.append(compiling())

    class Failing(nn.Module):
        fails = False

        def forward(self, x):
            if self.fails:
                raise ArithmeticError
            return x

    model = mlp().append(Failing())
    metrics = [plasticity_metrics(epoch=True), plasticity_metrics(minibatch=True)]
    for number in range(2):
        torch.manual_seed(number)
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=8,
            plugins=[ContinualBackpropPlugin(), ContinualBackpropPlugin(), Look()],
            evaluator=EvaluationPlugin(*metrics[: number + 1], loggers=[Silent()]),
        )
        strategy.train(stream(1, train=40).train_stream[0])
    assert len(seen) == 10 and all(seen) and compiling()
    model[-1].fails = True
    with pytest.raises(ArithmeticError):
        strategy.train(stream(1, train=40).train_stream[0])
    assert compiling()
