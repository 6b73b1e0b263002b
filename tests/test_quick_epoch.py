"""The quick epoch must do what Avalanche's own does: the same calls, values and weights, whoever listens."""

import pickle
import random
import warnings
from copy import copy
from functools import partial

import pytest
import torch
from avalanche.core import BaseSGDPlugin
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import BaseLogger
from avalanche.models import MultiTaskModule, SimpleMLP
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin, LwFPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.streams import make_stream
from plasticity.loading import TensorLoaderPlugin
from plasticity.loading.callbacks import EVENTS, acts, quiet
from plasticity.loading.epoch import comes_unpacked, takes_quick_epoch
from plasticity.loading.loader import TensorLoader
from plasticity.plugins import ReDoPlugin


def stream(sizes=(21, 30)):
    generator = torch.Generator().manual_seed(0)
    parts = [(torch.rand(size, 6, generator=generator), torch.arange(size) % 3) for size in sizes]
    return make_stream(parts, parts, "domain").streams["train"]


class Listener(SupervisedPlugin):
    """Notes every event of an iteration, with what can be seen of the strategy then."""

    def __init__(self):
        super().__init__()
        self.seen = []


def _note(event):
    def note(self, strategy, **kwargs):
        gradients = [None if p.grad is None else p.grad.sum().item() for p in strategy.model.parameters()]
        output = None if strategy.mb_output is None else torch.as_tensor(strategy.mb_output).sum().item()
        self.seen.append((event, strategy.clock.train_iterations, strategy.loss.item(), output, gradients, kwargs))

    return note


for _event in EVENTS:
    setattr(Listener, _event, _note(_event))


class Lines(BaseLogger):
    """Keeps every value, and when it came; listens to some events itself."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_single_metric(self, name, value, x_plot):
        self.lines.append((name, float(value), x_plot))

    def after_backward(self, strategy, values):
        self.lines.append(("after_backward", len(values), strategy.clock.train_iterations))


class Every(PluginMetric):
    """A metric of two events."""

    def before_update(self, strategy):
        return MetricValue(self, "before_update", float(strategy.loss), strategy.clock.train_iterations)

    def after_forward(self, strategy):
        return [MetricValue(self, "after_forward", 1.0, strategy.clock.train_iterations)]

    def reset(self):
        pass

    def result(self):
        pass


def train(
    quick,
    *,
    strategy=Naive,
    plugins=list,
    metrics=list,
    loggers=lambda: [Lines()],
    epochs=2,
    sizes=(21, 30),
    model=SimpleMLP,
):
    """Train with or without the plugin; returns the strategy, what a listener saw, what was logged, and the weights."""
    torch.manual_seed(5)
    random.seed(5)
    listener, loggers = Listener(), loggers()
    trained = strategy(
        model=model(num_classes=3, input_size=6, hidden_size=8, drop_rate=0.3),
        optimizer=None,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=epochs,
        plugins=[*([TensorLoaderPlugin()] if quick else []), *plugins(), listener],
        evaluator=EvaluationPlugin(*metrics(), loggers=loggers),
    )
    for experience in stream(sizes):
        trained.train(experience)
    lines = [line for logger in loggers for line in logger.lines]
    return trained, listener.seen, lines, [*trained.model.state_dict().values(), torch.get_rng_state()]


def with_optimizer(kind, **options):
    """Make a strategy's class with an optimizer for the model it gets."""

    def make(*, model, optimizer, criterion, evaluator, **shared):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        shared |= {"model": model, "optimizer": optimizer, "evaluator": evaluator, **options}
        return kind(criterion=criterion, **shared) if kind is not supervised.GDumb else kind(mem_size=12, **shared)

    return make


def assert_same(one, other):
    assert one[1] == other[1] and one[1]
    assert one[2] == other[2]
    assert len(one[3]) == len(other[3]) and all(torch.equal(a, b) for a, b in zip(one[3], other[3], strict=True))


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


class Meddler(SupervisedPlugin):
    """Does something in the middle of an epoch, once."""

    def __init__(self, meddle):
        super().__init__()
        self.meddle = meddle

    def after_forward(self, strategy, **kwargs):
        if strategy.clock.train_iterations == 4 and self.meddle is not None:
            meddle, self.meddle = self.meddle, None
            meddle(strategy, self)


def _replace_evaluator(strategy, me):
    strategy.plugins[strategy.plugins.index(strategy.evaluator)] = EvaluationPlugin(Every(), loggers=[_OTHER])


def _forget_task_labels(strategy, me):
    strategy.experience = copy(strategy.experience)
    del strategy.experience.task_labels


def _double_output(strategy, me):
    strategy.forward = lambda: 2 * type(strategy).forward(strategy)


_OTHER = Lines()
MEDDLING = {
    "another forward pass": _double_output,
    "a plugin more": lambda strategy, me: strategy.plugins.append(Listener()),
    "another list of plugins": lambda strategy, me: setattr(strategy, "plugins", [*strategy.plugins, Listener()]),
    "a plugin less": lambda strategy, me: strategy.plugins.remove(me),
    "a plugin before": lambda strategy, me: strategy.plugins.insert(0, Listener()),
    "stop": lambda strategy, me: strategy.stop_training(),
    "publish": lambda strategy, me: strategy.evaluator.publish_metric_value(MetricValue(me, "published", 3.0, 4)),
    "inactive": lambda strategy, me: setattr(strategy.evaluator, "active", False),
    "another evaluator": _replace_evaluator,
}


@pytest.mark.parametrize("name", MEDDLING)
def test_what_changes_in_the_middle_of_an_epoch_is_heeded(name):
    runs = []
    for quick in (True, False):
        _OTHER.lines = []
        run = train(quick, strategy=with_optimizer(Naive), plugins=lambda: [Meddler(MEDDLING[name])])
        others = [plugin.seen for plugin in run[0].plugins if type(plugin) is Listener]
        runs.append((run[0], run[1], [*run[2], *others, *_OTHER.lines], run[3]))
    assert_same(*runs)


def test_metrics_and_loggers_that_join_are_told_from_the_next_iteration_on():
    def meddle(strategy, me):
        strategy.evaluator.metrics.append(Every())

    run = train(True, strategy=with_optimizer(Naive), plugins=lambda: [Meddler(meddle)])
    assert [line[2] for line in run[2] if line[0] == "before_update"] == list(range(5, 14))


class AsksForLabels(MultiTaskModule):
    """Computes something else where it is not told the task."""

    def __init__(self, **kwargs):
        super().__init__()
        self.inner = SimpleMLP(**kwargs)

    def forward(self, x, task_labels=None):
        return self.inner(x) if task_labels is None else 3 * self.inner(x)


def test_task_labels_are_handed_on_as_long_as_there_are_any():
    seen = []
    for plugins in (list, lambda: [Meddler(_forget_task_labels)]):
        runs = [
            train(quick, strategy=with_optimizer(Naive), plugins=plugins, model=AsksForLabels)
            for quick in (True, False)
        ]
        assert_same(*runs)
        seen.append(runs[0][1])
    assert seen[0][:30] == seen[1][:30] and seen[0] != seen[1]


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


def test_after_an_interruption_the_strategy_trains_on():
    class Interrupts(SupervisedPlugin):
        def after_backward(self, strategy, **kwargs):
            if strategy.clock.train_iterations == 2:
                self.after_backward = lambda *args, **kwargs: None
                raise KeyboardInterrupt

    plugin = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        train(True, strategy=with_optimizer(Naive), plugins=lambda: [plugin])
    strategy = train(True, strategy=with_optimizer(Naive))[0]
    strategy.training_epoch = partial(*_interrupted(strategy))
    strategy.train(stream()[0])
    assert "training_epoch" not in vars(strategy)


def _interrupted(strategy):
    """What an interrupted quick epoch leaves behind."""
    from plasticity.loading.epoch import use_quick_epoch

    use_quick_epoch(strategy)
    left = vars(strategy).pop("training_epoch")
    return left.func, *left.args


def test_the_strategy_can_be_pickled_between_experiences():
    strategy = train(True, strategy=with_optimizer(Naive), loggers=list)[0]
    other = pickle.loads(pickle.dumps(strategy.plugins[0]))
    strategy.plugins[0] = other
    strategy.train(stream()[0])
    assert "training_epoch" not in vars(strategy)


class Empty(SupervisedPlugin):
    pass


class Stranger:
    """Not one of Avalanche's plugins."""

    def after_update(self, strategy, **kwargs):
        pass


def test_who_acts():
    plugin = Empty()
    assert not any(acts(plugin, event) for event in EVENTS)
    plugin.before_update = lambda strategy: None
    assert [event for event in EVENTS if acts(plugin, event)] == ["before_update"]
    assert [event for event in EVENTS if acts(Stranger(), event)] == ["after_update"]
    assert all(acts(Listener(), event) for event in EVENTS)
    assert not any(acts(BaseSGDPlugin(), event) for event in EVENTS)
    assert [event for event in EVENTS if acts(Every(), event)] == ["after_forward", "before_update"]


class OwnEvaluator(EvaluationPlugin):
    """Has its own way of an event."""

    def before_backward(self, strategy, **kwargs):
        pass


class Counting(BaseLogger):
    """Wants to be told even if there is nothing to log."""

    def log_metrics(self, values):
        pass


def test_evaluators_are_called_where_they_have_somebody_to_tell():
    def told(evaluator):
        return [event for event in EVENTS if quiet(evaluator, event) != []]

    assert told(EvaluationPlugin(loggers=[])) == []
    assert told(EvaluationPlugin(Every(), loggers=[])) == ["after_forward", "before_update"]
    assert told(EvaluationPlugin(loggers=[Lines()])) == ["after_backward"]
    assert told(EvaluationPlugin(loggers=[Counting()])) == list(EVENTS)
    assert told(OwnEvaluator(loggers=[])) == ["before_backward"]
