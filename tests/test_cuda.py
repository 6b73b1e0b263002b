"""On a GPU, where there is one: every strategy, in every way of computing, decides as on a CPU and never waits."""

import json

import pytest
import torch
from step_driver import Steps
from strategy_runs import COUNTS, acting, with_dead_units
from test_every_benchmark import few_images
from test_operation_counts import BUILDS, NAMES
from torch import nn

from benchmarks import computing, training
from benchmarks.cli import main
from benchmarks.computing import Computing
from benchmarks.cost import cases, epoch, watching
from benchmarks.models import MODELS, pairs_conv
from benchmarks.settings import resolve
from plasticity import find_units, watch
from plasticity.loading import MixedPrecisionPlugin
from strategies import STRATEGIES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CUDA = torch.device("cuda")
KINDS = {
    "float32": Computing(),
    "bfloat16": Computing("bfloat16"),
    "float16": Computing("float16"),
    "channels last": Computing(channels_last=True),
    "bfloat16, channels last": Computing("bfloat16", channels_last=True),
}


@pytest.fixture(autouse=True)
def _exact():
    """Products of matrices and convolutions in float32, of which a GPU otherwise may leave digits out."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        yield
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a strategy shortly on a device; returns its network and its result."""
    monkeypatch.setattr("benchmarks.streams.builders.load", few_images)
    monkeypatch.setitem(MODELS, "small", lambda *shape: with_dead_units(pairs_conv(*shape)))

    def run(name, device="cuda", kind=Computing()):  # noqa: B008  # it does not change
        asked = {"model": "small", "experiences": 2, "epochs": 1, "batch_size": 6, "computing": kind}
        settings = resolve("cifar100-pairs", name, 0, device=device, **asked)
        with training._Run(settings, tmp_path / "metrics.jsonl") as found:
            return found.strategy.model, found.complete(lambda done: None, None)

    return run


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_acts_as_on_the_cpu(name, run):
    model, result = run(acting(name))
    assert all(parameter.is_cuda for parameter in model.parameters())
    _, expected = run(acting(name), "cpu")
    dead = [[layer["dead"] for each in one["units"] for layer in each["layers"].values()] for one in (result, expected)]
    assert dead[0] == pytest.approx(dead[1], abs=0.1)
    if name in COUNTS:
        first = [one["treatments"][0] for one in (result, expected)]
        assert first[0]["method"] == first[1]["method"]
        # Of what was decided before the first update all depends on equal weights.
        if first[0]["iteration"] == first[1]["iteration"] == 0:
            assert first[0]["units"] == first[1]["units"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "float32"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_runs_in_every_way_of_computing(name, kind, run):
    _, result = run(acting(name), kind=KINDS[kind])
    assert all(value is not None for value in result["learning_accuracy"])
    if name in COUNTS:
        assert sum(sum(each["units"].values()) + each.get("steps", 0) for each in result["treatments"]) >= 0
        assert not any("withheld" in each or "diverged" in each for each in result["treatments"])


@pytest.mark.parametrize("name", ["naive", "redo", "hyper-hypo", "plasticity-injection"])
def test_compiled_networks_end_as_uncompiled_ones(name, run, monkeypatch):
    """By PyTorch's own reading of a network, without a compiler, whose kernels have other last digits."""
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **asked: compile_(self, backend="eager", **asked))
    monkeypatch.setattr(computing, "_check_compiler", lambda device: None)
    (model, _), (plain, _) = run(acting(name), kind=Computing(compile=True)), run(acting(name))
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


def test_a_network_is_compiled_for_the_gpu():
    Computing(compile=True).check("cuda")
    model = Computing("bfloat16", True, True).network(pairs_conv(4, (3, 32, 32), False).to(CUDA))
    plain, inputs = pairs_conv(4, (3, 32, 32), False).to(CUDA), torch.randn(8, 3, 32, 32, device=CUDA)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(inputs), plain(inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "channels last"])
def test_the_same_units_are_dead_there(kind):
    """Of a network with units that are dead whatever comes in."""
    torch.manual_seed(0)
    model, inputs = with_dead_units(pairs_conv(4, (3, 32, 32), False)), torch.randn(64, 3, 32, 32)
    units, found = find_units(model, inputs[:2]), []
    for device in ("cpu", "cuda"):
        model = KINDS[kind].network(model.to(device))
        with watch(model, units) as activity, torch.autocast(device, torch.bfloat16, enabled=kind == "bfloat16"):
            model(inputs.to(device))
        found.append({name: (stat.fired == 0).tolist() for name, stat in activity.statistics().items()})
    assert any(any(dead) for dead in found[0].values())
    if kind != "bfloat16":
        assert found[0] == found[1]
    else:
        assert [dead[:3] for dead in found[1].values()][0] == [True] * 3


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_units_are_watched_within_graphs_of_the_gpu(mode, recwarn):
    """Also in those whose kernels are replayed, on memory that is used again."""
    torch.manual_seed(0)
    model = with_dead_units(pairs_conv(4, (3, 32, 32), False)).to(CUDA)
    inputs = torch.randn(6, 32, 3, 32, 32, device=CUDA)
    units = find_units(model, inputs[0])
    with watch(model, units, features=50) as expected:
        for x in inputs:
            model(x)
    model.compile(mode=mode)
    with watch(model, units, features=50, compiled=True) as activity:
        for x in inputs:
            model(x).sum().backward()
    assert not any("uncompiled" in str(each.message) for each in recwarn)
    found = activity.statistics()
    for name, stat in expected.statistics().items():
        assert found[name].count == stat.count
        assert (found[name].fired == 0).tolist() == (stat.fired == 0).tolist()
        torch.testing.assert_close(found[name].mean, stat.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(activity.features(), expected.features(), rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16, channels last"])
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_the_gpu(name, build, half):
    """PyTorch raises where one does, also within its own kernels, as indexing with a mask does."""
    if (name, build) == ("crelu", "convolutional"):
        return  # which has no place for it
    make, shape = BUILDS[build]
    driver = Steps(name, make(), shape, "cuda", half)
    for _ in range(3):
        driver.step()
    _raising(lambda: [driver.step() for _ in range(4)])


def test_watched_steps_do_not_wait():
    model, inputs = pairs_conv(4, (3, 32, 32), False).to(CUDA), torch.randn(8, 3, 32, 32, device=CUDA)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    labels = torch.zeros(8, dtype=torch.int64, device=CUDA)
    units = find_units(model, inputs)

    def steps():
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()

    with watch(model, units, inputs=True, features=16):
        steps()
        _raising(steps)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("plugins", ["none", "watched"])
def test_whole_iterations_of_the_quick_loop_do_not_wait(precision, plugins):
    """Avalanche's own part, the loader's and the plugin's, and the scaler's with a fused optimizer."""
    case = cases.computed([cases.CASES[1]], Computing(precision))[0]
    metrics = [watching.plasticity_metrics(epoch=True)] if plugins == "watched" else []

    class Strict(cases.SupervisedPlugin):
        def before_training_iteration(self, strategy, *args, **kwargs):
            self.count = getattr(self, "count", 0) + 1
            torch.cuda.set_sync_debug_mode("error" if self.count > 4 else "default")

        def after_training_epoch(self, strategy, *args, **kwargs):
            torch.cuda.set_sync_debug_mode("default")

    strict = Strict()
    trainer = cases.Trainer(case, CUDA, [strict], metrics)
    assert any(isinstance(plugin, MixedPrecisionPlugin) for plugin in trainer.strategy.plugins)
    try:
        trainer.strategy.train(trainer.experience)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert strict.count > 10


def test_a_run_that_was_stopped_goes_on_there_with_the_random_numbers_of_the_gpu(tmp_path):
    from resuming_runs import interrupted, require_same, settings, whole

    run = settings("shrink-perturb-step", model="dropping", epochs=1, device="cuda")
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
        require_same(whole(run, tmp_path / "whole"), interrupted(run, tmp_path / "parts"))


def test_costs_are_measured_there(tmp_path, monkeypatch):
    monkeypatch.setattr(epoch, "IMAGES", 2560)
    monkeypatch.setitem(epoch.PEAKS, "cuda", (256, (8, 32, 8), 2))
    for words in ([], ["--precision", "bfloat16", "--channels-last"]):
        output = tmp_path / "cost.json"
        sections = ["--sections", "epoch", "--rounds", "2", "--device", "cuda"]
        assert main(["cost", *sections, *words, "--output", str(output)]) == 0
        found = json.loads(output.read_text())
        assert found["environment"]["gpu"] == torch.cuda.get_device_name() and found["lines"]
        assert not any("mini-batches" in line["unit"] for line in found["lines"])  # all of an epoch


def _raising(act):
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        act()
    finally:
        torch.cuda.set_sync_debug_mode("default")
