"""Watching every k-th pass: what is said is what those passes alone show; and nothing grows, and nothing waits."""

import gc
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avalanche.models import SlimResNet18
from avalanche.training.plugins import SupervisedPlugin
from cases import Net
from metric_cases import (
    CLASSES,
    EVERY,
    WIDTH,
    Recorder,
    effective_rank,
    emitted,
    hidden,
    hooks,
    learn,
    mlp,
    naive,
    observations,
    stream,
    unit_shares,
)
from torch import nn

from plasticity import UnitGradients, UserError, find_units, watch
from plasticity.metrics import plasticity_metrics
from plasticity.metrics.measured import MEASURES
from plasticity.watching.call_sums import TOGETHER

PLACE = "train_phase/train_stream/Task000"


@pytest.fixture
def observed(monkeypatch):
    return observations(monkeypatch)


def modules():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 2))


def functions():
    return Net(lambda m, x: m.c(F.gelu(m.b(F.relu(m.a(x))))), a=nn.Linear(4, 5), b=nn.Linear(5, 6), c=nn.Linear(6, 2))


# --- watch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [modules, functions])
@pytest.mark.parametrize("every", [1, 2, 3, 7, 100])
def test_statistics_are_those_of_the_passes_looked_at(build, every):
    torch.manual_seed(0)
    model, batches = build(), [torch.randn(size, 4) for size in (3, 1, 5, 2, 4, 6, 3, 8)]
    units = find_units(model, batches[0])
    with watch(model, units, inputs=True, features=50, every=every) as activity:
        for x in batches:
            model(x)
    with watch(model, units, inputs=True, features=50) as slow:
        for number, x in enumerate(batches):
            if number % every == 0:
                model(x)
    expected = slow.statistics()
    for name, found in activity.statistics().items():
        assert found.count == expected[name].count == sum(len(x) for x in batches[::every])
        for field in ("fired", "mean", "mean_abs"):
            assert torch.equal(getattr(found, field), getattr(expected[name], field))
    for ask in ("input_means", "input_minima"):
        found, wanted = getattr(activity, ask)(), getattr(slow, ask)()
        assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(activity.features(), slow.features())


def test_counting_begins_again_with_a_reset():
    model, x = modules(), torch.randn(3, 4)
    with watch(model, find_units(model, x), every=3) as activity:
        model(x), model(x)
        activity.reset()
        model(x[:1]), model(x), model(x)
        assert activity.statistics()["0"].count == 1
        model(x[:2])
    assert activity.statistics()["0"].count == 3


def test_a_pass_that_fails_is_one_of_those_counted():
    model, x = modules(), torch.randn(3, 4)
    with watch(model, find_units(model, x), every=2) as activity:
        model(x)
        with pytest.raises(RuntimeError):
            model(torch.randn(3, 9))
        model(x)
    assert activity.statistics()["0"].count == 6


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2", None])
def test_only_whole_numbers_make_sense(every):
    model = modules()
    units = find_units(model, torch.randn(3, 4))
    with pytest.raises(UserError, match="every must be a whole number of at least 1"), watch(model, units, every=every):
        pass
    with pytest.raises(UserError, match="every must be a whole number of at least 1"):
        plasticity_metrics(epoch=True, every=every)


# --- plasticity_metrics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3, 50])
def test_values_of_an_epoch_are_those_of_its_mini_batches_looked_at(every):
    """In numpy, from the inputs and weights of each pass."""
    recorder = Recorder()
    metrics = plasticity_metrics(epoch=True, measures=["DeadUnits", "DormantUnits", "OverActiveUnits"], every=every)
    rank = plasticity_metrics(epoch=True, measures=["EffectiveRank"], every=every)
    model = mlp(torch.float64)
    strategy = learn(naive(model, [*metrics, *rank], plugins=[recorder]), stream(dtype=torch.float64))
    found = emitted(strategy)
    assert len(recorder.epochs) == 6 and all(len(epoch) == 3 for epoch in recorder.epochs)
    for number, epoch in enumerate(recorder.epochs):
        layers = hidden(epoch[::every])
        for measure, share in unit_shares(layers).items():
            if "/" not in measure:
                assert found[f"{measure}_Epoch/{PLACE}"][1][number] == pytest.approx(share, abs=1e-12)
        expected = effective_rank(layers["2"])
        assert found[f"EffectiveRank_Epoch/{PLACE}"][1][number] == pytest.approx(expected, rel=1e-6)


def test_which_mini_batches_are_looked_at(observed):
    """Of 8, 8 and 4 samples the first and the third, in each epoch; evaluations are seen in full."""
    learn(naive(mlp(), plasticity_metrics(**EVERY, every=2)), stream())
    assert observed["MB"] == [{"0": 8, "2": 8}, {"0": 0, "2": 0}, {"0": 4, "2": 4}] * 6
    assert observed["Epoch"] == [{"0": 12, "2": 12}] * 6
    assert observed["Exp"] == [{"0": 10, "2": 10}] * 9
    assert observed["Stream"] == [{"0": 30, "2": 30}] * 3


def test_other_mini_batches_run_without_a_hook_and_have_no_values():
    model = mlp()
    seen = []
    model[1].register_forward_hook(lambda *args: seen.append(hooks(model) - 1))
    strategy = naive(model, plasticity_metrics(minibatch=True, measures=["DeadUnits", "WeightMagnitude"], every=2))
    strategy.train(stream().train_stream[0])
    assert [number > 0 for number in seen[1:]] == [True, False, True] * 2  # the first pass is the search for units
    found = emitted(strategy)
    assert len(found[f"DeadUnits_MB/{PLACE}"][1]) == 4 and len(found[f"WeightMagnitude_MB/{PLACE}"][1]) == 6


def test_it_is_about_training_mini_batches_that_are_watched():
    with pytest.raises(
        UserError, match="every=2 is about training mini-batches that are watched, and only evaluations"
    ):
        plasticity_metrics(stream=True, every=2)
    with pytest.raises(UserError, match="watched, and there is a probe"):
        plasticity_metrics(epoch=True, every=2, probe=torch.randn(4, WIDTH))


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def arrays():
    """Of NumPy, in which sums on a CPU are: they are counted from here on."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def held():
    """Count the numbers in all tensors that there are, and the bytes of arrays."""
    gc.collect()
    tensors = sum(each.numel() for each in gc.get_objects() if type(each) in (torch.Tensor, nn.Parameter))
    in_arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    return tensors, sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([in_arrays]).traces)


@pytest.mark.parametrize("build", [modules, functions])
def test_memory_does_not_grow_with_the_number_of_mini_batches(build, arrays):
    model, x = build(), torch.randn(3, 4)
    units = find_units(model, x)
    gradients = UnitGradients(model, units)
    sizes = []
    with watch(model, units, inputs=True, features=10) as activity:
        for number in range(5 * TOGETHER):
            model.zero_grad()
            model(x).sum().backward()
            gradients.look()
            if number in (TOGETHER - 1, 5 * TOGETHER - 1):
                sizes.append(held())
    assert sizes[0] == sizes[1] and sizes[0][1] > 0
    assert (
        activity.statistics()["0" if build is modules else "a"].count == 3 * 5 * TOGETHER
        and len(activity.features()) == 10
    )


def test_memory_of_the_metrics_does_not_grow_with_the_number_of_mini_batches(arrays):
    sizes = []

    class Count(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            if strategy.clock.train_iterations in (TOGETHER + 1, 2 * TOGETHER + 1):  # 8 samples each
                sizes.append(held())

    metrics = plasticity_metrics(epoch=True, experience=True, stream=True, measures=list(MEASURES), features=20)
    strategy = naive(mlp(), metrics, plugins=[Count()], train_epochs=1)
    benchmark = stream(1, train=600)
    strategy.train(benchmark.train_stream[0])
    assert len(sizes) == 2 and sizes[0] == sizes[1] and sizes[0][1] > 0


# --- nothing is asked of the device ----------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("build", [mlp, lambda: SlimResNet18(CLASSES)], ids=["mlp", "resnet"])
def test_neither_training_nor_evaluation_waits_before_the_report(build, every):
    """On the meta device there are no values: whatever asks for one raises."""
    model = build().to("meta")
    shape = (WIDTH,) if isinstance(model, nn.Sequential) else (3, 32, 32)
    strategy = SimpleNamespace(
        model=model,
        mb_x=torch.ones(4, *shape, device="meta"),
        mb_y=torch.zeros(4, dtype=torch.int64, device="meta"),
        clock=SimpleNamespace(train_iterations=0),
        is_eval=False,
        experience=SimpleNamespace(
            task_labels=[0], current_experience=0, origin_stream=SimpleNamespace(name="train_stream")
        ),
        device="meta",
        _criterion=nn.CrossEntropyLoss(),
    )
    strategy.forward = lambda: model(strategy.mb_x)
    (metric,) = plasticity_metrics(
        epoch=True, experience=True, stream=True, measures=list(MEASURES), per_layer=True, every=every
    )

    def wait(report):
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            report(strategy)

    for epoch in range(2):
        metric.before_training(strategy)
        metric.before_training_exp(strategy)
        metric.before_training_epoch(strategy)
        for _ in range(3):
            metric.before_forward(strategy)
            strategy.mb_output = strategy.forward()
            metric.after_forward(strategy)
            model.zero_grad()
            strategy.mb_output.sum().backward()
            metric.before_update(strategy)
            metric.after_update(strategy)
            assert metric.after_training_iteration(strategy) is None
        wait(metric.after_training_epoch)
        metric.reset()
        if epoch == 0:
            model.eval()
            metric.before_eval(strategy)
            metric.before_eval_exp(strategy)
            for _ in range(2):
                metric.before_eval_forward(strategy)
                with torch.no_grad():
                    strategy.forward()
                metric.after_eval_forward(strategy)
            wait(metric.after_eval_exp)
            wait(metric.after_eval)
            metric.reset()
            model.train()
    assert hooks(model) == 0
