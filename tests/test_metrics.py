"""Measures of plasticity as Avalanche metrics: names, x and values, against Avalanche's own and a plain reference."""

import math

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import SupervisedPlugin
from metric_cases import (
    EVERY,
    Recorder,
    effective_rank,
    emitted,
    hidden,
    mixed_stream,
    mlp,
    naive,
    parameters,
    stream,
    unit_shares,
    unlabelled_stream,
)
from torch import nn

from plasticity import UserError
from plasticity.metrics import plasticity_metrics
from plasticity.metrics.measured import MEASURES

UNITS = ["DeadUnits", "DormantUnits", "OverActiveUnits"]
IN_TRAINING = ("GradientNorm", "NotLearningUnits", "SamplePlasticity")


def run(strategy, benchmark, evaluate=True):
    for experience in benchmark.train_stream:
        strategy.train(experience)
        if evaluate:
            strategy.eval(benchmark.test_stream)
    return emitted(strategy)


STREAMS = {
    "task labels": lambda: stream(task_labels=True),
    "one task": stream,
    "no task labels": unlabelled_stream,
    "two tasks in one experience": mixed_stream,
}


@pytest.mark.parametrize("eval_every", [-1, 0, 1])
@pytest.mark.parametrize("kind", STREAMS)
def test_names_and_x_are_those_of_accuracy(kind, eval_every):
    metrics = [*plasticity_metrics(**EVERY, measures=list(MEASURES)), *accuracy_metrics(**EVERY)]
    found = run(naive(mlp(), metrics, eval_every=eval_every), STREAMS[kind]())
    accuracy = {name: xs for name, (xs, _) in found.items() if name.startswith("Top1_Acc_")}
    assert {name.partition("/")[0].rpartition("_")[2] for name in accuracy} == {"MB", "Epoch", "Exp", "Stream"}
    for measure in MEASURES:
        expected = {name.replace("Top1_Acc", measure, 1): xs for name, xs in accuracy.items()}
        if measure in IN_TRAINING:
            expected = {name: xs for name, xs in expected.items() if "/train_phase/" in name}
        assert {name: xs for name, (xs, _) in found.items() if name.startswith(f"{measure}_")} == expected
    in_evaluation = sum("/eval_phase/" in name for name in accuracy)
    assert len(found) == len(accuracy) * (len(MEASURES) + 1) - len(IN_TRAINING) * in_evaluation
    assert {type(value) for _, values in found.values() for value in values} == {float}


def test_names_by_hand():
    found = run(naive(mlp(), plasticity_metrics(**EVERY, measures=["DeadUnits"])), stream(2, task_labels=True))
    assert list(found) == [
        "DeadUnits_MB/train_phase/train_stream/Task000",
        "DeadUnits_Epoch/train_phase/train_stream/Task000",
        "DeadUnits_Exp/eval_phase/test_stream/Task000/Exp000",
        "DeadUnits_Exp/eval_phase/test_stream/Task001/Exp001",
        "DeadUnits_Stream/eval_phase/test_stream/Task001",
        "DeadUnits_MB/train_phase/train_stream/Task001",
        "DeadUnits_Epoch/train_phase/train_stream/Task001",
    ]
    without = run(naive(mlp(), plasticity_metrics(stream=True, measures="EffectiveRank")), unlabelled_stream())
    assert list(without) == ["EffectiveRank_Stream/eval_phase/test_stream"]


def test_values_agree_with_a_plain_reference():
    model, benchmark, recorder = mlp(torch.float64), stream(dtype=torch.float64), Recorder()
    metrics = plasticity_metrics(**EVERY, measures=[*UNITS, "EffectiveRank"], per_layer=True, tau=0.1, features=15)
    found = run(naive(model, metrics, plugins=[recorder], eval_mb_size=4), benchmark)

    def expected(passes, features):
        layers = hidden(passes)
        return {**unit_shares(layers, tau=0.1), "EffectiveRank": effective_rank(features)}

    series = {}

    def add(granularity, place, values):
        for name, value in values.items():
            measure, _, layer = name.partition("/")
            full = f"{measure}_{granularity}/{place}" + (f"/{layer}" if layer else "")
            series.setdefault(full, []).append(value)

    train, test = "train_phase/train_stream/Task000", "eval_phase/test_stream/Task000"
    for epoch in recorder.epochs:
        assert [len(inputs) for inputs, _ in epoch] == [8, 8, 4]
        for each in epoch:
            add("MB", train, expected([each], hidden([each])["2"]))
        add("Epoch", train, expected(epoch, hidden(epoch)["2"][:15]))
    for evaluation in recorder.evaluations:
        for number, experience in enumerate(evaluation):
            add("Exp", f"{test}/Exp{number:03d}", expected(experience, hidden(experience)["2"]))
        shares = [hidden(experience)["2"][:5] for experience in evaluation]  # 15 rows for 3 experiences
        add("Stream", test, expected(sum(evaluation, []), np.concatenate(shares)))
    assert set(found) == set(series)
    for name, (_, values) in found.items():
        assert values == pytest.approx(series[name], rel=1e-9), name
    dead = found[f"DeadUnits_Epoch/{train}/0"][1]
    assert min(dead) >= 3 / 12 and max(found[f"DormantUnits_Epoch/{train}/0"][1]) > max(dead)
    assert min(found[f"OverActiveUnits_Epoch/{train}/0"][1]) >= 2 / 12
    assert len({*found[f"EffectiveRank_MB/{train}"][1]}) > 10  # they move


def test_measures_of_parameters_agree_with_a_plain_reference():
    model, recorder = mlp(torch.float64), Recorder()
    initial = parameters(model)
    names = ["WeightMagnitude", "DistanceFromInitialisation", "GradientNorm"]
    strategy = naive(model, plasticity_metrics(**EVERY, measures=names, per_layer=True), plugins=[recorder])
    found = run(strategy, stream(1, train=20, dtype=torch.float64))

    def at(weights, gradients):
        values = {}
        for part in ("", "/0", "/2", "/4"):
            own = [name for name in weights if not part or name.startswith(f"{part[1:]}.")]
            entries = np.concatenate([abs(weights[name]).ravel() for name in own if name.endswith("weight")])
            values[f"WeightMagnitude{part}"] = math.fsum(entries) / len(entries)
            moved = np.concatenate([(weights[name] - initial[name]).ravel() for name in own])
            values[f"DistanceFromInitialisation{part}"] = math.sqrt(math.fsum(moved**2))
            if gradients is not None:
                norms = [
                    math.sqrt(math.fsum(np.concatenate([g[name].ravel() for name in own]) ** 2)) for g in gradients
                ]
                values[f"GradientNorm{part}"] = math.fsum(norms) / len(norms)
        return values

    def check(granularity, place, number, values):
        mine = {
            name.replace(f"_{granularity}/{place}", "", 1): values_[number]
            for name, (_, values_) in found.items()
            if f"_{granularity}/" in name
        }
        assert mine == pytest.approx(values, rel=1e-9)

    train, test = "train_phase/train_stream/Task000", "eval_phase/test_stream/Task000"
    passes = [each for epoch in recorder.epochs for each in epoch]
    after = [*(weights for _, weights in passes[1:]), parameters(model)]
    gradients = [each for epoch in recorder.updates for each in epoch]
    for number, (weights, gradient) in enumerate(zip(after, gradients, strict=True)):
        check("MB", train, number, at(weights, [gradient]))
    for number in range(2):
        check("Epoch", train, number, at(after[3 * number + 2], gradients[3 * number : 3 * number + 3]))
    check("Exp", f"{test}/Exp000", 0, at(parameters(model), None))
    check("Stream", test, 0, at(parameters(model), None))


def test_the_gradient_is_the_one_that_the_optimizer_uses():
    class Clip(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            nn.utils.clip_grad_norm_(strategy.model.parameters(), 1e-3)

    metrics = plasticity_metrics(minibatch=True, epoch=True, measures=["GradientNorm"])
    found = run(naive(mlp(), metrics, plugins=[Clip()]), stream(1), evaluate=False)
    for _, values in found.values():
        assert values == pytest.approx([1e-3] * len(values), rel=1e-3)


def test_layers_have_names_of_their_own():
    found = run(
        naive(mlp(), plasticity_metrics(epoch=True, measures=list(MEASURES), per_layer=True)), stream(1, train=20)
    )
    place = "train_phase/train_stream/Task000"
    expected = []
    for measure, (needs, _) in MEASURES.items():
        layers = {"units": ["0", "2"], "unit_gradients": ["0", "2"], "features": [], "steps": []}.get(
            needs, ["0", "2", "4"]
        )
        expected += [f"{measure}_Epoch/{place}", *(f"{measure}_Epoch/{place}/{layer}" for layer in layers)]
    assert list(found) == expected
    assert all(xs == [3, 6] and len(values) == 2 for xs, values in found.values())


def test_a_model_that_is_one_layer_names_it():
    metrics = plasticity_metrics(epoch=True, measures=["WeightMagnitude"], per_layer=True)
    found = run(naive(nn.Linear(8, 6), metrics), stream(1), evaluate=False)
    place = "WeightMagnitude_Epoch/train_phase/train_stream/Task000"
    assert list(found) == [place, f"{place}/(model)"]


def test_what_is_undefined_is_not_emitted():
    flat = run(naive(nn.Linear(8, 6), plasticity_metrics(**EVERY)), stream(1))
    assert {name.partition("_")[0] for name in flat} == {"EffectiveRank", "WeightMagnitude"}  # no hidden units

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(6))

        def forward(self, x):
            return self.logits.expand(len(x), -1)

    nothing = run(naive(Constant(), plasticity_metrics(**EVERY, measures=list(MEASURES))), stream(1))
    assert {name.partition("_")[0] for name in nothing} == {
        "DistanceFromInitialisation",
        "GradientNorm",
        "SamplePlasticity",
    }
    strategy = naive(mlp(), plasticity_metrics(**EVERY))
    assert strategy.eval([]) == {}


def test_a_network_that_diverged_is_measured_as_it_is():
    model = mlp()
    nn.init.constant_(model[2].weight, math.nan)
    found = run(
        naive(model, plasticity_metrics(minibatch=True, measures=["NonFiniteUnits", "EffectiveRank"])), stream(1)
    )
    assert found["NonFiniteUnits_MB/train_phase/train_stream/Task000"][1][0] == 7 / 19
    assert math.isnan(found["EffectiveRank_MB/train_phase/train_stream/Task000"][1][0])


def test_the_initial_parameters_are_those_first_seen():
    model, benchmark = mlp(), stream(2)
    strategy = naive(model, plasticity_metrics(epoch=True, experience=True, measures=["DistanceFromInitialisation"]))
    found = run(strategy, benchmark)
    assert min(found["DistanceFromInitialisation_Epoch/train_phase/train_stream/Task000"][1]) > 0
    strategy.model = mlp()  # another model begins anew
    with torch.no_grad():
        strategy.model[4].bias += 2.0
    strategy.eval(benchmark.test_stream)
    assert emitted(strategy)["DistanceFromInitialisation_Exp/eval_phase/test_stream/Task000/Exp000"][1][-1] == 0.0
    fresh = naive(mlp(), plasticity_metrics(experience=True, measures=["DistanceFromInitialisation"]))
    fresh.eval(benchmark.test_stream)  # an evaluation before any training sees them first
    with torch.no_grad():
        fresh.model[4].bias += 2.0
    fresh.eval(benchmark.test_stream)
    values = emitted(fresh)["DistanceFromInitialisation_Exp/eval_phase/test_stream/Task000/Exp000"][1]
    assert values == pytest.approx([0.0, 2 * math.sqrt(6)])


def test_arguments_are_checked():
    assert plasticity_metrics() == []
    with pytest.raises(
        UserError, match="unknown measure 'DeadUnit'; there are: DeadUnits, DormantUnits, .*GradientNorm"
    ):
        plasticity_metrics(epoch=True, measures=["DeadUnit"])
    with pytest.raises(UserError, match="at least one measure; there are: DeadUnits"):
        plasticity_metrics(epoch=True, measures=[])
    for setting in ({"tau": 1.1}, {"tau": math.nan}, {"over_active_bound": -0.1}):
        with pytest.raises(UserError, match=f"{next(iter(setting))} must be between 0 and 1"):
            plasticity_metrics(epoch=True, **setting)
    with pytest.raises(UserError, match="features must be at least 1"):
        plasticity_metrics(epoch=True, features=0)
    for names in (["GradientNorm"], ["SamplePlasticity"], ["GradientNorm", "SamplePlasticity"]):
        with pytest.raises(UserError, match=f"{' and '.join(names)} is emitted in training only"):
            plasticity_metrics(experience=True, stream=True, measures=names)
    with pytest.raises(UserError, match="balanced=True is about the probe"):
        plasticity_metrics(epoch=True, balanced=True)
    with pytest.raises(TypeError):
        plasticity_metrics(True)


def test_defaults():
    found = run(naive(mlp(), plasticity_metrics(epoch=True)), stream(1))
    assert [name.partition("_")[0] for name in found] == [*UNITS, "EffectiveRank", "WeightMagnitude"]
    (metric,) = plasticity_metrics(stream=True, measures=["DeadUnits", "DeadUnits"])
    assert metric.settings.measures == ("DeadUnits",)
    assert (metric.settings.tau, metric.settings.over_active_bound, metric.settings.features) == (0.025, 0.95, 2048)


def test_settings_reach_the_measures():
    def last(**settings):
        found = run(naive(mlp(), plasticity_metrics(epoch=True, per_layer=True, **settings)), stream(1))
        return {name.partition("_")[0]: values[0] for name, (_, values) in found.items() if name.endswith("Task000/0")}

    assert last(tau=0.0)["DormantUnits"] == last()["DeadUnits"] == 3 / 12
    assert last(tau=1.0)["DormantUnits"] > last()["DormantUnits"] == 4 / 12
    assert last(over_active_bound=0.0)["OverActiveUnits"] == 1.0
    assert last()["OverActiveUnits"] == 2 / 12
