"""Costs: the arithmetic of interleaved ratios by hand, and every section once, on something small."""

import json
import statistics

import pytest
import torch

from benchmarks.cli import main
from benchmarks.cost import cases, loading, processes, treating, watching
from benchmarks.cost.table import content, text
from benchmarks.cost.timing import interleave, ratio

CPU = torch.device("cpu")
SMALL = cases.Case("small", "mlp-2x16", (8,), 8, torch.optim.SGD, 6)


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_blocks_take_turns_and_every_second_round_is_reversed():
    order = []

    def block(name):
        return lambda: order.append(name) or float(len(order))

    times = interleave({"a": block("a"), "b": block("b"), "c": block("c")}, 3, warm_up=1)
    assert "".join(order) == "abc" + "cba" + "abc" + "cba"
    assert times == {"a": [6, 7, 12], "b": [5, 8, 11], "c": [4, 9, 10]}


def test_a_ratio_is_the_median_of_the_ratios_within_rounds():
    times = {"method": [2.0, 30.0, 3.3, 4.4, 5.0], "naive": [1.0, 10.0, 3.0, 4.0, 5.0]}
    found = ratio(times, "method", "naive")
    ratios = [2.0, 3.0, 1.1, 1.1, 1.0]
    assert found.median == pytest.approx(statistics.median(ratios)) and found.rounds == 5
    assert min(ratios) <= found.low <= found.median <= found.high <= max(ratios)
    same = ratio({"x": [3.0] * 4, "y": [2.0] * 4}, "x", "y")
    assert (same.low, same.median, same.high) == (1.5, 1.5, 1.5)


def test_watching_is_measured_beside_the_same_strategy_without(capsys):
    lines = list(watching.measure(CPU, 2, [SMALL]))
    assert [line.what for line in lines] == ["plasticity_metrics(epoch=True)", "plain hooks on activations"]
    assert all(line.ratio.rounds == 2 and line.ratio.median > 0 for line in lines)


def test_treating_is_measured_by_step_and_by_treatment():
    names = ["synaptic-stripping", "l2-init", "upgd", "layer-norm", "continual-backprop"]
    lines = [(line.what, line.unit) for line in treating.measure(CPU, 2, [SMALL], names)]
    steps = [(name, "step / naive step") for name in names]
    assert [line for line in lines if line[1] == "step / naive step"] == steps
    assert [what for what, unit in lines if unit != "step / naive step"] == ["synaptic-stripping"]


def test_every_method_can_be_measured_on_every_network():
    """A method that a network does not admit is passed over, and nothing else is."""
    tiny = [cases.Case(case.name, case.model, case.shape, 4, torch.optim.SGD, 1) for case in cases.CASES[1:2]]
    for case in tiny:
        found = {line.what for line in treating.measure(CPU, 1, [case])}
        assert found == set(treating.STRATEGIES) - treating.LEFT_OUT


def test_the_step_timer_counts_the_steps_after_the_first_few(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("benchmarks.cost.cases.clock", lambda device: float(next(ticks)) * 12)
    assert cases.Trainer(SMALL, CPU)() == pytest.approx(12 / SMALL.steps)


def test_loading_is_measured_against_avalanche_and_a_bare_loop(monkeypatch):
    monkeypatch.setattr(loading, "SAMPLES", 64)
    lines = list(loading.measure(CPU, 1))
    assert len(lines) == 4 and {line.section for line in lines} == {"loading"}


def test_pictures_of_the_stock_loader_are_the_tensors_of_ours():
    pixels = torch.randint(0, 256, (3, 5, 5, 3), dtype=torch.uint8)
    for index in range(3):
        picture, label = loading.Images(pixels.numpy(), [4, 5, 6])[index]
        assert torch.equal(picture, pixels[index].movedim(2, 0) / 255) and label == 4 + index


def test_processes_are_measured_by_whole_runs():
    (line,) = processes.measure(1, 1, experiences=1)  # a second process takes long to start
    assert line.ratio.median > 0 and "1 runs" in line.case


def test_the_command_prints_a_table_and_writes_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watching, "CASES", (SMALL,))
    monkeypatch.setattr(watching.measure, "__defaults__", ((SMALL,),))
    output = tmp_path / "cost.json"
    assert main(["cost", "--sections", "watching", "--rounds", "2", "--output", str(output)]) == 0
    assert "watching: small (step / naive step)" in capsys.readouterr().out
    found = json.loads(output.read_text())
    assert found["command"].endswith("cost --sections watching --rounds 2 --device cpu --threads 1")
    assert {"torch", "cpu"} <= set(found["environment"])
    assert [line["what"] for line in found["lines"]] == ["plasticity_metrics(epoch=True)", "plain hooks on activations"]
    assert main(["cost", "--sections", "sleeping"]) == 2
    assert "unknown section 'sleeping': there are watching" in capsys.readouterr().err


def test_the_text_has_every_figure():
    lines = list(watching.measure(CPU, 1, [SMALL]))
    shown = text(lines)
    for line in lines:
        assert f"{line.ratio.median:.3f}" in shown and line.what in shown
    assert content(lines, {}, "x")["lines"][0]["ratio"]["median"] == lines[0].ratio.median
