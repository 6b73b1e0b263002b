"""Rows of a comparison, and their text, CSV and JSON."""

import csv
import io
import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from test_comparison_results import edit, write_benchmark, write_run

from benchmarks.comparison import FORMATS, compare
from benchmarks.comparison.results import read_runs
from benchmarks.comparison.rows import MEASURES, comparison_rows, recovery
from benchmarks.comparison.statistics import student_interval
from benchmarks.comparison.summary import summary
from benchmarks.comparison.tables import plain_table, terminal_table
from benchmarks.comparison.wording import WORDING
from plasticity.errors import UserError

UNDEFINED = {"mean": None, "low": None, "high": None}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def rows(results):
    return {row["strategy"]: row for row in comparison_rows(read_runs(results))}


def stored(results: Path, strategy: str, measure: str) -> np.ndarray:
    paths = sorted((results / "permuted-digits" / strategy).glob("*/result.json"))
    return np.array([json.loads(path.read_text(encoding="utf-8"))["measures"][measure] for path in paths])


def test_rows_have_every_measure_of_the_contract(rows):
    contract = """average_accuracy average_online_accuracy learning_accuracy late_learning_accuracy
    difference_from_naive trainability_gap plasticity_ratio recovery forgetting backward_transfer forward_transfer
    dead_fraction dead_unit_area dormant_fraction effective_rank output_shift accuracy_damage treated_units
    sample_plasticity
    largest_hessian_eigenvalue gradient_effective_rank relative_time seconds""".split()
    assert list(MEASURES) == contract == list(WORDING)
    for strategy, row in rows.items():
        assert list(row) == ["benchmark", "strategy", "seeds", *contract]
        assert row["benchmark"] == "permuted-digits" and row["strategy"] == strategy and row["seeds"] == 3
        assert all(list(row[measure]) == ["mean", "low", "high"] for measure in contract)


def test_means_are_over_the_runs_own_measures(results, rows):
    for strategy, row in rows.items():
        for measure in ("average_accuracy", "late_learning_accuracy", "dead_fraction", "effective_rank"):
            assert row[measure] == pytest.approx(student_interval(stored(results, strategy, measure)))
    assert rows["naive"]["seconds"]["mean"] == pytest.approx(13.5)


def test_ratios_are_paired(results, rows):
    late = {name: stored(results, name, "late_learning_accuracy") for name in rows}
    ratio = rows["synaptic-stripping"]["plasticity_ratio"]
    assert ratio["mean"] == pytest.approx(late["synaptic-stripping"].mean() / late["fresh"].mean())
    gain, loss = late["synaptic-stripping"] - late["naive"], late["fresh"] - late["naive"]
    recovered = rows["synaptic-stripping"]["recovery"]
    assert recovered["mean"] == pytest.approx(gain.mean() / loss.mean())
    assert recovered["low"] <= recovered["mean"] <= recovered["high"]
    difference = rows["synaptic-stripping"]["difference_from_naive"]
    assert difference["mean"] == pytest.approx(gain.mean()) and difference["low"] < gain.mean() < difference["high"]
    assert rows["naive"]["recovery"] == rows["naive"]["difference_from_naive"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert rows["fresh"]["recovery"] == rows["fresh"]["plasticity_ratio"] == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_fresh_neither_forgets_nor_transfers(rows):
    assert rows["fresh"]["forgetting"] == rows["fresh"]["backward_transfer"] == UNDEFINED
    assert rows["naive"]["forgetting"]["mean"] == pytest.approx(0.1, abs=0.02)


def test_references_may_be_absent(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "redo", seed)
    (row,) = comparison_rows(read_runs(tmp_path))
    assert row["recovery"] == row["plasticity_ratio"] == row["difference_from_naive"] == UNDEFINED
    assert row["average_accuracy"]["mean"] is not None


def test_ratios_take_the_seeds_that_all_have(tmp_path):
    write_benchmark(tmp_path, seeds=2)
    for seed in range(2, 6):
        write_run(tmp_path, "naive", seed, end=0.1)
    rows = {row["strategy"]: row for row in comparison_rows(read_runs(tmp_path))}
    assert rows["naive"]["seeds"] == 6 and rows["fresh"]["seeds"] == 2
    late = {name: stored(tmp_path, name, "late_learning_accuracy")[:2] for name in rows}
    expected = recovery(*(dict(enumerate(late[name])) for name in ("synaptic-stripping", "naive", "fresh")))
    assert rows["synaptic-stripping"]["recovery"] == expected != UNDEFINED


def test_a_measure_that_one_run_lacks_is_undefined(tmp_path):
    write_run(tmp_path, seed=0)
    path = write_run(tmp_path, seed=1) / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    result["units"][-1]["effective_rank"] = result["measures"]["effective_rank"] = None
    edit(path, **result)
    (row,) = comparison_rows(read_runs(tmp_path))
    assert row["effective_rank"] == UNDEFINED and row["dead_fraction"]["mean"] is not None


def test_one_seed_has_no_intervals(tmp_path):
    write_benchmark(tmp_path, seeds=1)
    for row in comparison_rows(read_runs(tmp_path)):
        for measure in MEASURES:
            assert row[measure]["low"] is None and row[measure]["high"] is None
        assert row["recovery"]["mean"] is not None
    assert "±0" not in compare(tmp_path)


def test_json_is_the_rows(results):
    def refuse(constant):
        raise AssertionError(constant)

    parsed = json.loads(compare(results, "json"), parse_constant=refuse)
    assert parsed == comparison_rows(read_runs(results))


def test_csv_is_the_rows(results, rows):
    parsed = list(csv.DictReader(io.StringIO(compare(results, "csv"))))
    assert [line["strategy"] for line in parsed] == list(rows)
    for line in parsed:
        row = rows[line["strategy"]]
        assert int(line["seeds"]) == 3
        assert set(line) == {"benchmark", "strategy", "seeds"} | {
            f"{measure}_{key}" for measure in MEASURES for key in ("mean", "low", "high")
        }
        for measure in MEASURES:
            for key, value in row[measure].items():
                assert line[f"{measure}_{key}"] == ("" if value is None else repr(value))


def test_table_is_aligned_and_fits_100_columns(results, rows):
    text = compare(results)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert lines[0] == "permuted-digits" and "±" in text and "\x1b" not in text
    naive = next(line for line in lines if line.startswith("naive"))
    assert naive.split()[:3] == ["naive", "3", f"{rows['naive']['late_learning_accuracy']['mean']:.3f}"]
    assert naive.split()[-2:] == ["0", "1.00"]  # treated units and time
    position = lines[2].index("learning") + len("learning")  # numbers end where their heading ends
    below = lines[lines.index(naive) + 1]
    assert re.search(r"\d$", naive[:position]) and re.search(r"±\d\.\d{3}$", below[:position])
    combination = next(index for index, line in enumerate(lines) if line.startswith("replay+"))
    assert lines[combination + 1].startswith("hyper-hypo ")
    fresh = next(line for line in lines if line.startswith("fresh"))
    assert "–" in fresh.split()


def test_the_text_says_what_the_seeds_can_tell_apart(results):
    """In the page's own words, with seeds, intervals and paired differences; a table alone looks like a ranking."""
    text = " ".join(compare(results).split())
    topics = summary(read_runs(results)["permuted-digits"])
    assert {topic.title for topic in topics} >= {"Plasticity", "Forgetting", "Hidden units"}
    for topic in topics:
        assert f"{topic.title}: {' '.join(topic.sentences)}" in text
    assert "naive loses" in text and "recovers" in text and re.search(r"points \[\S+, \S+\]", text)


def test_the_words_stand_below_their_own_table(tmp_path):
    for benchmark in ("split-digits", "permuted-digits"):
        for strategy, end in (("naive", 0.5), ("fresh", 0.9)):
            for seed in range(3):
                write_run(tmp_path, strategy, seed, benchmark=benchmark, end=end if benchmark[0] == "p" else 0.5)
    first, second = compare(tmp_path).split("\nsplit-digits\n")
    assert "naive loses" in first and "No loss of plasticity is shown" in second
    assert max(map(len, (first + second).splitlines())) <= 100


def test_long_names_take_several_lines(tmp_path):
    name = "synaptic-stripping-whitaker2023:every=experience:fraction=0.02+shrink-perturb-interpolate:strength=0.4"
    for seed in range(3):
        write_run(tmp_path, "naive", seed)
        write_run(tmp_path, name, seed, end=0.9)
    lines = compare(tmp_path).splitlines()
    assert max(len(line) for line in lines) <= 100
    first = next(index for index, line in enumerate(lines) if line.startswith("synaptic"))
    parts = [line.split("  ")[0].strip() for line in lines[first : first + 8]]
    assert "".join(part.split()[0] for part in parts if part) == name
    assert "fraction=0.02+" in parts and "whitaker2023:" in parts


def test_times_are_compared_by_the_processors_clock_where_that_is_meaningful(tmp_path):
    def times(**settings):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for seed in range(2):
            write_run(folder, "naive", seed, settings=settings)  # 12.5 + seed and 8 + seed seconds
            write_run(folder, "redo", seed, settings=settings)  # 12.5 + seed and 10 + seed seconds
        return folder, lambda: comparison_rows(read_runs(folder))[-1]["relative_time"]

    folder, ratio = times()
    assert ratio()["mean"] == pytest.approx(np.sqrt(10 / 8 * 11 / 9))
    path = folder / "permuted-digits/redo/seed-1/result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    del result["processor"]  # one run that does not tell it: none is compared by it
    path.write_text(json.dumps(result), encoding="utf-8")
    assert ratio()["mean"] == pytest.approx(1.0)
    _, ratio = times(device="cuda")
    assert ratio()["mean"] == pytest.approx(1.0)


def test_terminal_table_has_the_same_content(results):
    rows = comparison_rows(read_runs(results))
    emphasised = terminal_table(rows)
    assert "\x1b[" in emphasised
    assert re.sub(r"\x1b\[[0-9;]*m", "", emphasised) == plain_table(rows)


def test_emphasis_is_for_terminals_only(results, monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdout", Terminal())
    assert "\x1b[" in compare(results)
    assert "\x1b[" not in compare(results, "csv")


def test_names_are_not_markup(tmp_path):
    write_run(tmp_path, "[red]$x$")
    comparison = read_runs(tmp_path)
    assert "[red]$x$" in terminal_table(comparison_rows(comparison))


@pytest.mark.parametrize("format", FORMATS)
def test_output_is_written_whole(results, tmp_path, format):
    target = tmp_path / "comparison.out"
    target.write_text("old", encoding="utf-8")
    text = compare(results, format, target)
    assert target.read_text(encoding="utf-8") == text == compare(results, format)
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.out"]


def test_new_output_has_ordinary_permissions(results, tmp_path):
    (tmp_path / "ordinary").touch()
    compare(results, "csv", tmp_path / "new.csv")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "new.csv")]
    assert modes[0] == modes[1]


def test_output_may_be_a_link_or_a_device(results, tmp_path):
    (tmp_path / "target.csv").touch()
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "target.csv")
    text = compare(results, "csv", link)
    assert link.is_symlink() and (tmp_path / "target.csv").read_text(encoding="utf-8") == text
    compare(results, "csv", Path(os.devnull))
    assert not Path(os.devnull).is_file()


def test_unwritable_output_is_one_clear_line(results, tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path / "absent" / "x.csv", tmp_path, tmp_path / "file" / "x.csv", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=re.escape(f"cannot write {target}: ")) as caught:
            compare(results, "csv", target)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_unknown_format_lists_the_known_ones(results):
    with pytest.raises(UserError, match="unknown format 'xml'; known formats: table, csv, json, html"):
        compare(results, "xml")
