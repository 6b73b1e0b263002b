"""Metrics on a fixed probe: which samples it has, and that what is emitted depends on the network alone."""

import copy
import pickle

import numpy as np
import pytest
import torch
from avalanche.models import MTSimpleMLP
from avalanche.training.plugins import SupervisedPlugin
from metric_cases import (
    CLASSES,
    EVERY,
    WIDTH,
    Growing,
    Samples,
    effective_rank,
    emitted,
    hidden,
    hooks,
    learn,
    mlp,
    naive,
    parameters,
    stream,
    unit_shares,
    unlabelled_stream,
)
from torch import nn
from torch.utils.data import TensorDataset

from plasticity import UserError
from plasticity.metrics import plasticity_metrics
from plasticity.metrics.probing import FixedProbe
from plasticity.probe import Probe

UNITS = ["DeadUnits", "DormantUnits", "OverActiveUnits", "EffectiveRank"]


class Seen(SupervisedPlugin):
    """Notes the parameters at every time at which metrics are emitted."""

    def __init__(self):
        super().__init__()
        self.at = {"MB": [], "Epoch": [], "Exp": [], "Stream": []}

    def after_training_iteration(self, strategy, **kwargs):
        self.at["MB"].append(parameters(strategy.model))

    def after_training_epoch(self, strategy, **kwargs):
        self.at["Epoch"].append(parameters(strategy.model))

    def after_eval_exp(self, strategy, **kwargs):
        self.at["Exp"].append(parameters(strategy.model))

    def after_eval(self, strategy, **kwargs):
        self.at["Stream"].append(parameters(strategy.model))


def test_values_agree_with_a_plain_reference():
    samples, seen = Samples(37, 9, dtype=torch.float64), Seen()
    metrics = plasticity_metrics(**EVERY, measures=UNITS, per_layer=True, tau=0.1, features=20, probe=samples)
    strategy = naive(mlp(torch.float64), metrics, plugins=[seen])
    found = emitted(learn(strategy, stream(dtype=torch.float64)))
    metric = strategy.evaluator.metrics[0]
    inputs = metric._training._probe._inputs.numpy()
    assert sorted(inputs.tolist()) == sorted(samples.tensors[0].tolist())  # all of them, in some order
    counts = dict.fromkeys(seen.at, 0)
    for name, (_, values) in found.items():
        measure, granularity = name.split("/")[0].rsplit("_", 1)
        layer = name.rsplit("/", 1)[1]
        moments = seen.at[granularity]
        if granularity == "Exp":  # one name for each experience
            moments = moments[int(name.split("/Exp")[1][:3]) :: 3]
        expected = []
        for weights in moments:
            layers = hidden([(inputs, weights)])
            if measure == "EffectiveRank":
                expected.append(effective_rank(layers["2"][:20]))
            else:
                shares = unit_shares(layers, tau=0.1)
                expected.append(shares[f"{measure}/{layer}" if layer in layers else measure])
        assert values == pytest.approx(expected, rel=1e-9), name
        counts[granularity] += 1
    assert counts == {"MB": 10, "Epoch": 10, "Exp": 30, "Stream": 10}
    assert len(set(found["EffectiveRank_MB/train_phase/train_stream/Task000"][1])) > 10  # it moves


def test_a_frozen_network_always_looks_the_same():
    model = nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, CLASSES))
    metrics = plasticity_metrics(**EVERY, measures=UNITS, probe=Samples(100, 0), probe_samples=30)
    found = emitted(learn(naive(model, metrics, rate=0.0), stream()))
    for measure in UNITS:
        values = {value for name, (_, v) in found.items() if name.startswith(measure) for value in v}
        assert len(values) == 1
    changing = emitted(learn(naive(model, plasticity_metrics(**EVERY, measures=UNITS), rate=0.0), stream()))
    assert len({value for _, v in changing.values() for value in v}) > 10


def labels_of(probe, samples):
    rows = [next(i for i, x in enumerate(samples.tensors[0]) if torch.equal(x, row)) for row in probe._inputs]
    assert len(set(rows)) == len(rows)
    return np.bincount([samples.targets[row] for row in rows], minlength=CLASSES).tolist(), rows


def unbalanced():
    samples = Samples(120, 4)
    samples.targets = [0] * 90 + [1] * 20 + [2] * 10
    samples.tensors = (samples.tensors[0], torch.tensor(samples.targets))
    return samples


@pytest.mark.parametrize("targets", ["attribute", "samples"])
def test_classes_are_balanced(targets):
    samples = unbalanced()
    if targets == "samples":
        del samples.targets  # must be read off the samples
    probe = FixedProbe(samples, 36, balanced=True)
    counts, rows = labels_of(probe, unbalanced())
    assert counts[:3] == [13, 13, 10] and len(rows) == 36
    assert max(rows[:13]) > 13  # drawn, not the first
    again = FixedProbe(samples, 36, balanced=True)
    assert torch.equal(probe._inputs, again._inputs)
    plain, _ = labels_of(FixedProbe(samples, 36), unbalanced())
    assert sum(plain) == 36 and plain[0] > 20
    everything, _ = labels_of(FixedProbe(samples, 1000, balanced=True), unbalanced())
    assert everything[:3] == [90, 20, 10]


def test_kinds_of_probes():
    inputs = torch.randn(40, WIDTH)
    model = mlp()

    class Strategy:
        device = torch.device("cpu")

    Strategy.model = model

    def dead(probe, **settings):
        stats = FixedProbe(probe, **settings).look(Strategy).statistics
        return {name: stat.mean_abs.tolist() for name, stat in stats.items()}, stats["0"].count

    expected, count = dead(Probe([(inputs[:9],), (inputs[9:],)]), size=3)  # taken whole
    assert count == 40
    for probe in (
        inputs,
        TensorDataset(inputs, torch.zeros(40)),
        TensorDataset(inputs),
        [(x, 0, "a name") for x in inputs],
        list(inputs),
    ):
        found, count = dead(probe)
        assert count == 40
        for name, means in expected.items():
            assert found[name] == pytest.approx(means)
        assert dead(probe, size=7)[1] == 7
    experience = stream(1, train=20).train_stream[0]
    assert dead(experience)[1] == dead(experience.dataset)[1] == 20
    assert dead(unlabelled_stream().train_stream[0])[1] == 12


def test_rows_of_features_are_limited():
    class Strategy:
        device, model = torch.device("cpu"), mlp()

    tally = FixedProbe(torch.randn(1100, WIDTH), 2048, features=700).look(Strategy)
    assert tally.features().shape == (700, 7) and tally.statistics["0"].count == 1100


def test_heads_for_tasks_take_the_task_labels_of_the_probe():
    benchmark = stream(2, task_labels=True)
    probe = benchmark.train_stream[0].dataset.concat(benchmark.train_stream[1].dataset)
    metrics = plasticity_metrics(stream=True, measures=["DeadUnits"], probe=probe)
    strategy = naive(MTSimpleMLP(input_size=WIDTH, hidden_size=5), metrics)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    assert len(emitted(strategy)) == 1
    strategy = naive(
        MTSimpleMLP(input_size=WIDTH, hidden_size=5), plasticity_metrics(epoch=True, probe=torch.randn(4, WIDTH))
    )
    with pytest.raises(UserError, match="needs task labels, and the samples of the probe have none"):
        strategy.train(benchmark.train_stream[0])
    early = naive(MTSimpleMLP(input_size=WIDTH, hidden_size=5), plasticity_metrics(epoch=True, probe=probe))
    with pytest.raises(UserError, match="MTSimpleMLP cannot be run on the probe .KeyError: '1'"):
        early.train(benchmark.train_stream[0])  # there is no head yet for the second task


def test_a_head_may_grow_and_the_model_be_replaced():
    metrics = plasticity_metrics(epoch=True, stream=True, per_layer=True, measures=["DeadUnits"], probe=Samples(20, 1))
    strategy = learn(naive(Growing(), metrics), stream())
    strategy.model = mlp()
    strategy.eval(stream().test_stream)
    names = {name.rsplit("/", 1)[1] for name in emitted(strategy)}
    assert names == {"Task000", "features.0", "0", "2"}


def test_measuring_changes_nothing_and_leaves_no_hooks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, CLASSES))
    results = []
    for metrics in ([], plasticity_metrics(**EVERY, probe=Samples(50, 3), balanced=True, probe_samples=20)):
        strategy = learn(naive(copy.deepcopy(model), metrics, eval_every=1), stream())
        results.append((strategy.model.state_dict(), torch.get_rng_state()))
        assert hooks(strategy.model) == 0
    assert all(torch.equal(value, results[1][0][name]) for name, value in results[0][0].items())
    assert torch.equal(results[0][1], results[1][1])


def test_it_can_be_pickled():
    metrics = plasticity_metrics(epoch=True, probe=Samples(50, 3))
    strategy = naive(mlp(), metrics)
    strategy.train(stream().train_stream[0])
    (metric,) = strategy.evaluator.metrics
    again = pickle.loads(pickle.dumps(metric))
    strategy.evaluator.metrics = [again]
    strategy.train(stream().train_stream[1])
    assert torch.equal(again._training._probe._inputs, metric._training._probe._inputs)


def test_one_look_serves_a_whole_evaluation(monkeypatch):
    looks = []
    plain = FixedProbe.look
    monkeypatch.setattr(FixedProbe, "look", lambda self, strategy: looks.append(1) or plain(self, strategy))
    strategy = naive(mlp(), plasticity_metrics(experience=True, stream=True, probe=Samples(20, 1)))
    for _ in range(2):
        strategy.eval(stream().test_stream)
    assert len(looks) == 2
    weights = naive(mlp(), plasticity_metrics(experience=True, measures="WeightMagnitude", probe=Samples(20, 1)))
    weights.eval(stream().test_stream)
    assert len(looks) == 2  # units are not asked for


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"probe": torch.randn(4, WIDTH), "balanced": True}, "needs labels: give a data set"),
        ({"probe": Probe([(torch.randn(4, WIDTH),)]), "balanced": True}, "needs labels: give a data set"),
        ({"probe": torch.empty(0, WIDTH)}, "the probe has no samples"),
        ({"probe": Probe([])}, "the probe has no samples"),
        ({"probe": []}, "the probe has no samples"),
        ({"probe": torch.randn(4, WIDTH), "probe_samples": 0}, "probe_samples must be at least 1, not 0"),
        ({"probe": 3}, "must be a data set, a tensor or a Probe, not a int"),
        ({"probe": [("text", 1)]}, "the inputs of the probe are no tensors"),
        ({"probe": [(torch.zeros(2), 1), (torch.zeros(3), 1)]}, "do not fit into one tensor"),
        ({"probe": TensorDataset(torch.zeros(4, 2), torch.rand(4)), "balanced": True}, "labels that are whole numbers"),
    ],
)
def test_impossible_probes_are_one_clear_line(settings, problem):
    with pytest.raises(UserError, match=problem) as caught:
        plasticity_metrics(epoch=True, **settings)
    assert "\n" not in str(caught.value)


def test_a_probe_that_the_model_cannot_take_is_one_clear_line():
    strategy = naive(mlp(), plasticity_metrics(epoch=True, probe=torch.randn(4, WIDTH + 1)))
    with pytest.raises(
        UserError, match="Sequential cannot be run on the probe .RuntimeError: .*mat1 and mat2"
    ) as caught:
        strategy.train(stream().train_stream[0])
    assert "\n" not in str(caught.value)
