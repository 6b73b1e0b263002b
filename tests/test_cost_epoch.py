"""The cost of an epoch: its operations and the peak by hand, and that its figures fit together."""

import json
from contextlib import nullcontext

import pytest
import torch

from benchmarks.cli import main
from benchmarks.computing import Computing
from benchmarks.cost import epoch, processes
from benchmarks.cost.bare import BareSteps
from benchmarks.cost.cases import Case, StepTimer

CPU = torch.device("cpu")
SMALL = Case("small", "mlp-2x16", (8,), 8, torch.optim.SGD, 6)


def test_the_operations_of_a_step_are_those_of_its_matrix_products():
    forward = [2 * 8 * inputs * outputs for inputs, outputs in ((8, 16), (16, 16), (16, 10))]
    # Backward, each layer has as many for its weights, and all but the first for its inputs.
    assert epoch.Bare(SMALL, CPU).operations() == 2 * sum(forward) + sum(forward[1:])
    half = Case("small", "mlp-2x16", (8,), 8, torch.optim.SGD, 6, computing=Computing(precision="bfloat16"))
    assert epoch.Bare(half, CPU).operations() == 2 * sum(forward) + sum(forward[1:])


@pytest.mark.parametrize(
    ("measure", "operations"),
    [(epoch.matmul, 2 * 16**3), (epoch.convolution, 2 * 2 * 3 * 3 * 9 * 8 * 8)],
    ids=["matmul", "convolution"],
)
def test_a_peak_is_time_over_operations(measure, operations, monkeypatch):
    monkeypatch.setitem(epoch.PEAKS, "cpu", (16, (2, 3, 8), 5))
    ticks = iter((100.0, 103.0))
    monkeypatch.setattr(epoch, "clock", lambda device: next(ticks))
    assert measure(CPU, Computing()) == pytest.approx(3.0 / 5 / operations)


def test_an_epoch_is_measured_against_its_arithmetic_and_a_bare_loop(monkeypatch):
    monkeypatch.setattr(epoch, "FEW", 1)
    monkeypatch.setattr(epoch, "IMAGES", 320)  # one mini-batch of 32 in each of ten experiences
    monkeypatch.setitem(epoch.PEAKS, "cpu", (64, (2, 8, 8), 1))
    found = {(line.what, line.unit.split(",")[0]): line.ratio.median for line in epoch.measure(CPU, 1)}
    seconds = "seconds an epoch of 32 images"
    assert all(figure > 0 for figure in found.values())
    for base in (epoch.FLOOR, epoch.BARE):
        for name in (epoch.NAIVE, epoch.WATCHED):
            expected = found[name, seconds] / found[base, seconds]
            assert found[name, f"time / {base}"] == pytest.approx(expected)
    speed = max(found[name, "10^12 operations a second"] for name in (epoch.MATMUL, epoch.CONVOLUTION))
    benchmark = epoch.get_benchmark(epoch.BENCHMARK)
    case = Case("", benchmark.model, epoch.SHAPE, 32, torch.optim.SGD, 1, epoch.CLASSES)
    assert found[epoch.FLOOR, seconds] == pytest.approx(epoch.Bare(case, CPU).operations() / speed / 1e12)


def test_where_an_epoch_is_worked_out_from_some_mini_batches_its_table_says_so(monkeypatch):
    monkeypatch.setattr(epoch, "Trainer", lambda case, device, metrics=None: lambda: 0.5)
    monkeypatch.setattr(epoch, "matmul", lambda device, computing: 1e-9)
    monkeypatch.setattr(epoch, "convolution", lambda device, computing: 1e-9)
    monkeypatch.setattr(epoch.Bare, "__call__", lambda self: 0.25)
    monkeypatch.setattr(epoch, "FEW", 2)
    first, *_ = epoch.measure(CPU, 1)
    assert first.unit == "seconds an epoch of 5000 images, from 2 of its 157 mini-batches"
    assert first.ratio.median == 0.5 * 157 and StepTimer.SKIPPED > 0


def test_the_table_says_how_networks_computed(tmp_path, monkeypatch):
    seen = []

    def trainer(case, device, metrics=None):
        seen.append(case.computing)
        return lambda: 0.5

    monkeypatch.setattr(epoch, "Trainer", trainer)
    monkeypatch.setattr(epoch, "FEW", 1)
    monkeypatch.setitem(epoch.PEAKS, "cpu", (16, (2, 8, 8), 1))
    words = ["cost", "--sections", "epoch", "--rounds", "1", "--precision", "bfloat16", "--channels-last"]
    assert main([*words, "--output", str(tmp_path / "cost.json")]) == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    asked = {"device": "cpu", "precision": "bfloat16", "memory_format": "channels last", "compiled": "no"}
    assert asked.items() <= found["environment"].items() and "torch" in found["environment"]
    assert found["command"].endswith("--device cpu --threads 1 --precision bfloat16 --channels-last")
    assert seen == [Computing("bfloat16", channels_last=True)] * 2


def test_bare_steps_train_as_written_down():
    """In each precision, beside a loop that says all of it."""
    inputs, labels = torch.randn(16, 8), torch.randint(4, (16,))
    for precision in ("float32", "bfloat16"):
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)))
        ours, plain = models
        steps = BareSteps(ours, torch.optim.SGD(ours.parameters(), lr=0.1), Computing(precision), CPU)
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
        for _ in range(3):
            steps.step(inputs, labels)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = torch.nn.functional.cross_entropy(plain(inputs), labels)
            loss.backward()
            optimizer.step()
        assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), plain.parameters(), strict=True))


def test_processes_take_the_device_and_how_networks_compute(monkeypatch):
    seen = []
    monkeypatch.setattr(processes, "plain_processes", lambda *asked: nullcontext([None]))
    monkeypatch.setattr(processes, "_seconds", lambda pipes: 1.0)
    list(processes.measure(1, run=seen.append, device="cuda", computing=Computing("bfloat16", True, True)))
    asked = " --device cuda --precision bfloat16 --channels-last --compile "
    assert len(seen) == 2 and all(asked in " ".join(words) for words in seen)
