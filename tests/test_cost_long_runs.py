"""The figures of long runs: their arithmetic by hand, and the command on short ones."""

import json
from concurrent.futures import Future

import numpy as np
import pytest

from benchmarks.cli import main
from benchmarks.cost import long_runs
from benchmarks.cost.long_runs import Series, figures, growth, run_of, slowing
from benchmarks.publishing import markdown
from plasticity import UserError


def test_growth_is_the_slope_of_a_line():
    done = np.arange(0, 2001, 50.0)
    found = growth(done, 500 + 0.012 * done)
    assert found.median == pytest.approx(12) and found.low == pytest.approx(12) and found.high == pytest.approx(12)
    assert found.rounds == 41
    chance = np.random.default_rng(1)
    noisy = growth(done, 500 + 0.012 * done + chance.normal(0, 3, len(done)))
    assert noisy.low < 12 < noisy.high and noisy.high - noisy.low < 6
    assert noisy.median == pytest.approx(1000 * np.polyfit(done, 500 + 0.012 * done, 1)[0], abs=3)
    flat = growth(done, np.full(len(done), 7.0))
    assert (flat.low, flat.median, flat.high) == pytest.approx((0, 0, 0))


def test_slowing_is_in_units_of_the_work_beside_it():
    """A machine that gets slower does not count, an experience that does, does."""
    machine = np.linspace(1, 3, 200)
    steady = slowing(5 * machine, machine, blocks=40)
    assert steady.median == pytest.approx(1) and steady.low == pytest.approx(1) and steady.rounds == 8
    late = np.where(np.arange(200) < 100, 5.0, 6.0)
    assert slowing(late * machine, machine, blocks=40).median == pytest.approx(1.2)
    uneven = slowing(late * machine * np.tile([1.0, 1.1], 100), machine, blocks=200)
    assert uneven.low < 1.2 < uneven.high


def test_what_memory_took_in_the_first_tenth_is_no_growth():
    done = list(range(0, 41))
    resident = [100.0 + 50 * min(number, 4) for number in done]
    series = Series(done, resident, [3] * 41, [7 * number for number in done], [1.0] * 40, [0.5] * 40)
    found = {line.unit: line.ratio for line in figures(series, run_of("naive", 40))}
    assert list(found) == [
        long_runs.LEVEL,
        long_runs.MEMORY,
        long_runs.TENSORS,
        long_runs.OBJECTS,
        long_runs.TIME,
    ]
    assert found[long_runs.LEVEL].median == 300 and found[long_runs.MEMORY].median == 0
    assert found[long_runs.TENSORS].median == 0 and found[long_runs.OBJECTS].median == pytest.approx(7000)
    assert found[long_runs.TIME].median == 1


class Here:
    """In the place of a process of its own."""

    def __init__(self, *arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, work, *arguments):
        done = Future()
        done.set_result(work(*arguments))
        return done


def test_the_command_measures_and_its_table_has_a_row_for_each_strategy(tmp_path, capsys, monkeypatch):
    def seen(run, every, modules):
        assert (run.benchmark, run.experiences, run.evaluate, run.epochs) == ("permuted-digits", 80, 5, 1)
        assert every == 2 and modules == ("json",)
        done = list(range(0, 81, 2))
        return Series(done, [900.0] * 41, [100] * 41, [5 * number for number in done], [0.2] * 80, [0.1] * 80)

    monkeypatch.setattr(long_runs, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(long_runs, "watched", seen)
    output = tmp_path / "long.json"
    command = ["cost", "--sections", "long-runs", "--strategies", "naive,l2", "--experiences", "80", "--import", "json"]
    assert main([*command, "--output", str(output)]) == 0
    assert f"long-runs: permuted-digits, 80 experiences ({long_runs.MEMORY})" in capsys.readouterr().out
    found = json.loads(output.read_text())
    assert found["command"].endswith("--threads 1 --strategies naive,l2 --experiences 80 --import json")
    assert [line["what"] for line in found["lines"]] == ["naive"] * 5 + ["l2"] * 5
    table = markdown(found).splitlines()
    assert table[0].startswith("| strategy | MiB of memory") and len(table) == 6
    assert table[2:4] == [f"| {name} | 900.00 | 0.00 | 0.00 | 5000.00 | 1.00 |" for name in ("naive", "l2")]


def test_what_cannot_be_measured_is_told_before_any_run(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="at least 40 experiences, not 39"):
        list(long_runs.measure(long_runs.Asked(("naive",), 39), "cpu", 1))
    with pytest.raises(UserError, match="unknown strategy"):
        list(long_runs.measure(long_runs.Asked(("naive", "nothing")), "cpu", 1))
    monkeypatch.setattr(long_runs, "_STATM", tmp_path / "none")
    with pytest.raises(UserError, match="which is not here"):
        list(long_runs.measure(long_runs.Asked(("naive",)), "cpu", 1))
