"""The metrics see the strategy's own forward passes and nothing else, and leave no trace in a run."""

import copy

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.models import MTSimpleMLP, SimpleMLP, as_multitask
from avalanche.training.plugins import (
    AGEMPlugin,
    EvaluationPlugin,
    EWCPlugin,
    GDumbPlugin,
    GEMPlugin,
    GSS_greedyPlugin,
    LwFPlugin,
    MASPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)
from avalanche.training.supervised import ER_ACE
from metric_cases import CLASSES, EVERY, WIDTH, Growing, Silent, emitted, learn, mlp, naive, observations, stream
from torch import nn

from plasticity.metrics import plasticity_metrics
from plasticity.metrics.measured import MEASURES

OTHERS = {
    "alone": lambda: [],
    "GEM": lambda: [GEMPlugin(10, 0.5)],
    "A-GEM": lambda: [AGEMPlugin(10, 10)],
    "EWC": lambda: [EWCPlugin(1.0)],
    "MAS": lambda: [MASPlugin()],
    "LwF": lambda: [LwFPlugin()],
    "GDumb": lambda: [GDumbPlugin(12)],
    "Replay": lambda: [ReplayPlugin(12)],
    "GSS": lambda: [GSS_greedyPlugin(40, 2, [WIDTH])],
    "GEM, LwF and Replay": lambda: [GEMPlugin(10, 0.5), LwFPlugin(), ReplayPlugin(12)],
}


class Sizes(SupervisedPlugin):
    """Notes how many samples the strategy's own forward passes saw."""

    def __init__(self):
        super().__init__()
        self.counts = {"MB": [], "Epoch": [], "Exp": [], "Stream": []}

    def before_training_epoch(self, strategy, **kwargs):
        self.counts["Epoch"].append(0)

    def after_forward(self, strategy, **kwargs):
        self.counts["MB"].append(len(strategy.mb_x))
        self.counts["Epoch"][-1] += len(strategy.mb_x)

    def before_eval(self, strategy, **kwargs):
        self.counts["Stream"].append(0)

    def before_eval_exp(self, strategy, **kwargs):
        self.counts["Exp"].append(0)

    def after_eval_forward(self, strategy, **kwargs):
        self.counts["Exp"][-1] += len(strategy.mb_x)
        self.counts["Stream"][-1] += len(strategy.mb_x)


@pytest.fixture
def observed(monkeypatch):
    return observations(monkeypatch)


@pytest.mark.parametrize("eval_every", [-1, 1])
@pytest.mark.parametrize("other", OTHERS)
def test_only_the_strategys_own_passes_count(other, eval_every, observed):
    sizes, plugins = Sizes(), OTHERS[other]()
    forwards = []
    model = mlp()
    model.register_forward_hook(lambda module, args, output: forwards.append(len(args[0])))
    strategy = naive(model, plasticity_metrics(**EVERY), plugins=[*plugins, sizes], eval_every=eval_every)
    torch.manual_seed(5)
    for experience in stream().train_stream:
        strategy.train(experience)
        strategy.eval(stream().test_stream)
    for granularity, expected in sizes.counts.items():
        assert len(expected) > 0
        assert observed[granularity] == [{"0": count, "2": count} for count in expected]
    assert sizes.counts["Epoch"][:2] == ([12, 12] if other == "GDumb" else [20, 20])
    own = sum(sizes.counts["Epoch"]) + sum(sizes.counts["Stream"])
    if other in ("GEM", "A-GEM", "EWC", "MAS"):  # they do run the model besides
        assert sum(forwards) > own + 50


@pytest.mark.parametrize("other", OTHERS)
def test_a_measured_run_is_bit_identical(other):
    results, model = [], mlp()
    for metrics in ([], plasticity_metrics(**EVERY, measures=list(MEASURES), per_layer=True)):
        strategy = naive(copy.deepcopy(model), metrics, plugins=OTHERS[other](), eval_every=1)
        learn(strategy, stream())
        results.append((strategy.model.state_dict(), torch.get_rng_state()))
    for name, value in results[0][0].items():
        assert torch.equal(value, results[1][0][name]), name
    assert torch.equal(results[0][1], results[1][1])


def test_normalisation_and_dropout_stay_bit_identical():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 6, 2), nn.BatchNorm2d(6), nn.ReLU())
    net = nn.Sequential(net, nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    results = []
    for metrics in ([], plasticity_metrics(**EVERY, per_layer=True)):
        strategy = learn(naive(copy.deepcopy(net), metrics), stream())
        results.append((strategy.model.state_dict(), torch.get_rng_state()))
    for name, value in results[0][0].items():
        assert torch.equal(value, results[1][0][name]), name
    assert torch.equal(results[0][1], results[1][1])


HEADS = {
    "growing": (Growing, {}),
    "multi-head": (lambda: MTSimpleMLP(input_size=WIDTH, hidden_size=5), {"task_labels": True}),
    "as_multitask": (lambda: as_multitask(SimpleMLP(CLASSES, WIDTH, 5), "classifier"), {"task_labels": True}),
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads_may_grow(kind, observed):
    build, labels = HEADS[kind]
    sizes = Sizes()
    torch.manual_seed(0)
    strategy = naive(build(), plasticity_metrics(**EVERY, measures=["DeadUnits", "EffectiveRank"]), plugins=[sizes])
    learn(strategy, stream(**labels))
    for granularity, expected in sizes.counts.items():
        assert [set(each.values()) for each in observed[granularity]] == [{count} for count in expected]
    xs, values = next(each for name, each in emitted(strategy).items() if name.startswith("EffectiveRank_Stream"))
    assert len(values) == 3 and min(values) > 1.0  # all heads' rows were seen


def test_only_the_rows_of_all_heads_together_make_the_features():
    torch.manual_seed(0)
    metrics = plasticity_metrics(stream=True, measures=["Rank99"], features=2)
    benchmark = stream(2, task_labels=True)
    strategy = learn(naive(MTSimpleMLP(input_size=WIDTH, hidden_size=5), metrics), benchmark)
    (values,) = [values for _, values in emitted(strategy).values()]
    assert max(values) <= 2.0  # one row of each experience


def test_an_online_stream(observed):
    sizes = Sizes()
    strategy = naive(mlp(), plasticity_metrics(**EVERY), plugins=[sizes], train_epochs=1, train_mb_size=4)
    benchmark = stream()
    for experience in split_online_stream(benchmark.train_stream, experience_size=4, access_task_boundaries=True):
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    assert sizes.counts["Epoch"] == [4] * 15
    for granularity, expected in sizes.counts.items():
        assert observed[granularity] == [{"0": count, "2": count} for count in expected]


def test_replayed_samples_that_a_loss_runs_apart_do_not_count(observed):
    sizes, model = Sizes(), mlp()
    ER_ACE(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        mem_size=12,
        batch_size_mem=8,
        train_mb_size=8,
        plugins=[sizes],
        evaluator=EvaluationPlugin(plasticity_metrics(epoch=True), loggers=[Silent()]),
    ).train(stream().train_stream)
    assert observed["Epoch"] == [{"0": count, "2": count} for count in (20, 20, 20)]


def test_a_plugin_that_runs_the_model_right_after_the_pass_does_not_count(observed):
    class Curious(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            strategy.model(strategy.mb_x)

        def after_eval_forward(self, strategy, **kwargs):
            strategy.model(strategy.mb_x)

    learn(naive(mlp(), plasticity_metrics(**EVERY), plugins=[Curious()]), stream())
    assert observed["Epoch"] == [{"0": 20, "2": 20}] * 6
    assert observed["Stream"] == [{"0": 30, "2": 30}] * 3
