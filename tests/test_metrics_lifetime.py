"""The metrics follow a model that changes, and outlive interruptions and checkpoints; training never waits for them."""

import copy
import pickle
from types import SimpleNamespace

import dill
import pytest
import torch
from avalanche.models import SlimResNet18
from avalanche.training.plugins import GDumbPlugin, LwFPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from metric_cases import CLASSES, EVERY, WIDTH, Growing, emitted, learn, mlp, naive, observations, stream
from torch import nn

from plasticity import find_units
from plasticity.errors import TraceError
from plasticity.metrics import plasticity_metrics
from plasticity.metrics.measured import MEASURES


@pytest.fixture
def observed(monkeypatch):
    return observations(monkeypatch)


def test_units_are_found_once_for_each_structure(monkeypatch):
    found = []

    def spy(model, example):
        found.append(len(example[0]))
        return find_units(model, example)

    monkeypatch.setattr("plasticity.plugins.observing.find_units", spy)
    learn(naive(mlp(), plasticity_metrics(**EVERY)), stream())
    assert found == [4, 4]  # in training and in evaluation, of a few samples
    found.clear()
    learn(naive(Growing(), plasticity_metrics(epoch=True)), stream(), evaluate=False)
    assert len(found) == 3
    found.clear()
    learn(naive(mlp(), plasticity_metrics(epoch=True), plugins=[GDumbPlugin(12)]), stream(), evaluate=False)
    assert len(found) == 3
    found.clear()
    learn(naive(mlp(), plasticity_metrics(epoch=True, measures=["WeightMagnitude", "GradientNorm"])), stream())
    assert found == []


def test_a_layer_that_changes_within_an_epoch(observed):
    class Replace(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            if strategy.clock.train_iterations == 1:  # the second of three mini-batches: 8, 8 and 4 samples
                strategy.model[2], strategy.model[4] = nn.Linear(12, 9), nn.Linear(9, CLASSES)

    naive(mlp(), plasticity_metrics(epoch=True), plugins=[Replace()], train_epochs=1).train(stream().train_stream[0])
    assert observed["Epoch"] == [{"0": 20, "2": 12}]  # of the new layer only what it did


class Functional(nn.Module):
    """Activations as functions, which are seen by a mode of PyTorch's instead of a hook."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 5), nn.Linear(5, CLASSES)
        self.interrupted = False

    def forward(self, x):
        h = torch.relu(self.first(x))
        if self.interrupted:
            raise KeyboardInterrupt
        return self.last(h)


def test_an_interrupted_pass_leaves_nothing_to_the_next_run(observed):
    class Interrupt(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            strategy.model.interrupted = strategy.clock.train_iterations == 1

    plugin = Interrupt()
    strategy = naive(Functional(), plasticity_metrics(epoch=True), plugins=[plugin], train_epochs=1)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(stream().train_stream[0])
    assert observed["Epoch"] == []
    strategy.plugins.remove(plugin)
    strategy.model.interrupted = False
    learn(strategy, stream(), evaluate=False)
    assert observed["Epoch"] == [{"first": 20}] * 3
    assert torch._C._len_torch_function_stack() == 0


def test_a_pass_that_never_came_is_forgotten(observed):
    class Twice(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            strategy.evaluator.before_forward(strategy)  # as if an earlier iteration had been left here

    learn(naive(mlp(), plasticity_metrics(epoch=True), plugins=[Twice()]), stream())
    assert observed["Epoch"] == [{"0": 20, "2": 20}] * 6


def test_a_model_that_changes_its_mode_while_training(observed):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.aside, self.first, self.last = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 5), nn.Linear(5, CLASSES)

        def forward(self, x):
            aside = torch.relu(self.aside(x)).sum() if self.training else 0
            return self.last(torch.relu(self.first(x))) + aside

    class Still(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            strategy.model.train(strategy.clock.train_epoch_iterations == 0)  # the first of 8, 8 and 4 samples

    learn(naive(Auxiliary(), plasticity_metrics(epoch=True), plugins=[Still()]), stream(), evaluate=False)
    assert observed["Epoch"] == [{"aside": 8, "first": 20}] * 6


def test_a_model_that_cannot_be_traced_is_a_clear_error():
    model = nn.Sequential(torch.jit.script(nn.Linear(WIDTH, 4)), nn.ReLU(), nn.Linear(4, CLASSES))
    with pytest.raises(TraceError, match="TorchScript"):
        naive(model, plasticity_metrics(epoch=True)).train(stream().train_stream[0])


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda each: dill.loads(dill.dumps(each))], ids=["deepcopy", "dill"])
def test_a_run_goes_on_after_it_was_restored(copier):
    benchmark, results = stream(), []
    for restored in (False, True):
        metrics = plasticity_metrics(**EVERY, measures=list(MEASURES), per_layer=True)
        strategy = naive(mlp(), metrics, plugins=[ReplayPlugin(12), LwFPlugin()])
        torch.manual_seed(5)
        strategy.train(benchmark.train_stream[0])
        strategy.eval(benchmark.test_stream)
        if restored:
            pickle.dumps(strategy.model)
            model, plugins, evaluator, clock = copier(
                (strategy.model, strategy.plugins[:2], strategy.evaluator, strategy.clock)
            )
            strategy = Naive(
                model=model,
                optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
                criterion=nn.CrossEntropyLoss(),
                train_mb_size=8,
                train_epochs=2,
                eval_mb_size=4,
                plugins=plugins,
                evaluator=evaluator,
            )
            strategy.plugins[-1] = strategy.clock = clock
        torch.manual_seed(6)
        strategy.train(benchmark.train_stream[1])
        strategy.eval(benchmark.test_stream)
        results.append(emitted(strategy))
    assert results[0] == results[1] and len(results[0]) > 100


def test_the_metric_by_itself_can_be_pickled():
    strategy = naive(mlp(), plasticity_metrics(**EVERY, measures=list(MEASURES)))
    strategy.train(stream().train_stream[0])
    (metric,) = strategy.evaluator.metrics
    again = pickle.loads(pickle.dumps(metric))
    assert again.settings == metric.settings
    assert all(torch.equal(value, again._initial[name]) for name, value in metric._initial.items())


def test_what_was_emitted_is_not_kept():
    sizes = set()
    for samples in (60, 600):
        strategy = naive(mlp(), plasticity_metrics(**EVERY), train_epochs=1)
        benchmark = stream(train=samples, test=samples)
        strategy.train(benchmark.train_stream[0])
        strategy.eval(benchmark.test_stream)
        sizes.add(len(pickle.dumps(strategy.evaluator.metrics)))
    assert len(sizes) == 1


@pytest.mark.parametrize("build", [mlp, lambda: SlimResNet18(CLASSES)], ids=["mlp", "resnet"])
def test_training_is_not_made_to_wait(build):
    # A tensor without data raises on everything that needs a value on the host.
    model = build().to("meta")
    inputs = torch.ones(4, *((WIDTH,) if isinstance(model, nn.Sequential) else (3, 32, 32)), device="meta")
    clock = SimpleNamespace(train_iterations=0)
    strategy = SimpleNamespace(
        model=model,
        mb_x=inputs,
        mb_y=torch.zeros(4, dtype=torch.int64, device="meta"),
        clock=clock,
        is_eval=False,
        experience=None,
        device="meta",
        forward=lambda: model(inputs),
        _criterion=nn.CrossEntropyLoss(),
    )

    def iterate(metric):
        metric.before_forward(strategy)
        strategy.mb_output = strategy.forward()
        metric.after_forward(strategy)
        strategy.mb_output.sum().backward()
        metric.before_update(strategy)
        metric.after_update(strategy)
        strategy.experience = SimpleNamespace(
            task_labels=[0], current_experience=0, origin_stream=SimpleNamespace(name="train_stream")
        )
        return metric.after_training_iteration(strategy)

    (metric,) = plasticity_metrics(epoch=True, measures=list(MEASURES), per_layer=True)
    metric.before_training(strategy)
    metric.before_training_epoch(strategy)
    for _ in range(3):
        assert iterate(metric) is None
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        metric.after_training_epoch(strategy)  # the report itself needs the values
    (metric,) = plasticity_metrics(minibatch=True, measures=["DeadUnits"])
    metric.before_training_epoch(strategy)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        iterate(metric)
