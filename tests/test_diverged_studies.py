"""Runs whose network became NaN or infinite, in what `tune` and `study` write: as `compare` shows them."""

import csv
import json
from collections import Counter
from functools import partial

import pytest
import torch
from study_cases import finished, result
from test_comparison_results import write_run
from test_diverged_runs import diverge, run

from benchmarks.comparison.wording import DIVERGED
from benchmarks.publishing import markdown
from benchmarks.runner import import_modules
from benchmarks.settings import resolve
from benchmarks.studies import STUDIES, Asked, dying_units, get_study, width_depth
from benchmarks.studies.study import last_treatment
from benchmarks.studies.tables import Column, csv_text, plain_text
from benchmarks.tuning import choose, lines

ASKED = Asked(2)
MARKS = ("diverged", "runs")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- tuning ------------------------------------------------------------------------------------------------------


def test_tuning_says_how_many_runs_of_a_configuration_diverged(tmp_path):
    tried = {"naive": ["naive"], "l2": ["l2", "l2:strength=1"]}
    runs = [resolve("permuted-digits", name, seed) for some in tried.values() for name in some for seed in (1000, 1001)]
    ends = {"naive": 0.5, "l2": 0.6, "l2:strength=1": 0.7}
    folders = [write_run(tmp_path, each.strategy, each.seed, end=ends[each.strategy]) for each in runs]
    healthy = choose(tried, runs, tmp_path)
    assert "diverged" not in json.dumps(healthy) and not any("iverged" in line for line in lines(healthy))
    for folder in (folders[3], folders[4], folders[5]):
        diverge(folder, 2)
    found = choose(tried, runs, tmp_path)
    assert found["strategies"]["l2"].pop("diverged") == {"l2": 1, "l2:strength=1": 2}
    assert found == healthy
    marked = lines(choose(tried, runs, tmp_path))
    plain = lines(healthy)
    assert marked == [*plain[:2], f"{plain[2]}, 1 of 2 diverged", f"{plain[3]}, 2 of 2 diverged", DIVERGED]


def test_tune_says_it_of_real_runs(tmp_path, capsys):
    small = ["--experiences", 2, "--epochs", 1, "--learning-rate", 1e30, "--optimizer", "sgd"]
    assert run("tune", "permuted-digits", "--strategies", "naive", "--seeds", 2, "--out", tmp_path, *small) == 0
    said = capsys.readouterr().out
    assert "* naive, 2 of 2 diverged\n" in said and DIVERGED in said
    assert json.loads((tmp_path / "tuned.json").read_text())["strategies"]["naive"]["diverged"] == {"naive": 2}


# --- studies -----------------------------------------------------------------------------------------------------

TREATMENT = {"parameters": 900, "pruned_fraction": 0.1, "removed_fraction": 0.2}
WITHHELD = {"withheld": "1 of 2 units are NaN or infinite", "units": {}}


def made(*treatments):
    return result(learned=[0.5, 0.4], treatments=list(treatments or [TREATMENT]))


def reported(name, make):
    """The report of a study whose results are made from the settings of its runs; and these."""
    study = get_study(name)
    import_modules(list(study.modules))
    report = study.report
    if name == "demon-pruning":  # which measures steps, too
        report = partial(report, ratio=lambda build, sizes, *rest: [1.0] * len(sizes))
    runs = list(dict.fromkeys(study.runs(ASKED)))
    return report(ASKED, finished(runs, make)), runs


def plain(rows):
    return [{key: value for key, value in row.items() if key not in MARKS} for row in rows or []]


def marks(rows):
    return [tuple(row[key] for key in MARKS) for row in rows or [] if "diverged" in row]


def levels():
    """How many runs each row of the summary of dying-units is of: two of every setting."""
    found = Counter((point.factor, point.stream, point.optimizer) for point in dying_units.points(ASKED))
    return {key: 2 * count for key, count in found.items()}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_marks_the_rows_of_runs_that_diverged_and_nothing_else_changes(name):
    healthy, runs = reported(name, lambda run: made())
    rows, summary = healthy.rows, healthy.summary or []
    assert not marks(rows) and not marks(summary)

    whole, _ = reported(name, lambda run: made() | {"diverged": 0})
    assert marks(whole.rows) == [(2, 2)] * len(rows)
    counts = [8] * len(summary)  # two in each of four streams
    if name == "dying-units":
        counts = [levels()[row["factor"], row["stream"], row["optimizer"]] for row in summary]
    assert marks(whole.summary) == [(count, count) for count in counts]

    one, _ = reported(name, lambda run: made() | ({"diverged": 0} if run == runs[0] else {}))
    assert set(marks(one.rows)) == {(1, 2)} and "diverged" in one.rows[0]
    if name != "dying-units":  # where a run belongs to several rows
        assert len(marks(one.rows)) == 1 and len(marks(one.summary)) == min(1, len(summary))
    for report in (whole, one):
        assert plain(report.rows) == rows and plain(report.summary) == summary and report.finding == healthy.finding


@pytest.mark.parametrize("name", ["demon-pruning", "width-depth"])
def test_what_was_withheld_in_the_end_changes_nothing_of_what_was_done_before(name):
    expected, _ = reported(name, lambda run: made())
    found, _ = reported(name, lambda run: made(TREATMENT, WITHHELD, WITHHELD))
    assert found == expected
    none, _ = reported(name, lambda run: made(WITHHELD))
    wholly = {"demon-pruning": ("units", "weights"), "width-depth": ("removed",)}[name]
    assert {row[key]["mean"] for row in none.rows for key in wholly} == {0.0}


def test_the_last_treatment():
    assert last_treatment(result(treatments=[{"a": 1}, {"a": 2}, WITHHELD])) == {"a": 2}
    assert last_treatment(result(treatments=[WITHHELD])) is last_treatment(result(treatments=[])) is None


COLUMNS = (Column("name", "name"), Column("share", "share of\nunits", "what it is", 2))
ROWS = [{"name": "a", "share": {"mean": 0.25, "low": 0.125, "high": 0.375}}, {"name": "long", "share": None}]


def test_the_mark_stands_in_a_last_column_only_where_there_is_one():
    marked = [ROWS[0], ROWS[1] | {"diverged": 2, "runs": 5}]
    before, after = (plain_text("Why?", rows, COLUMNS, "Because.").splitlines() for rows in (ROWS, marked))
    number = next(index for index, line in enumerate(before) if line.startswith("long"))
    assert after[number] == f"{before[number]}  2 of 5 diverged"
    assert [line for line in after if line not in before] == [after[number - 2], after[number], DIVERGED]
    assert set(after[number - 2]) == {"-"}  # the rule is longer

    before, after = (list(csv.reader(csv_text(rows, COLUMNS).splitlines())) for rows in (ROWS, marked))
    assert after == [[*line, last] for line, last in zip(before, ["diverged", "0", "2"], strict=True)]


@pytest.mark.filterwarnings("ignore:SynapticStrippingPlugin treats nothing:UserWarning")
def test_a_study_of_runs_that_diverge_ends_and_its_table_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(width_depth, "BENCHMARKS", {"split-digits": {"epochs": 2, "batch_size": 128}})
    monkeypatch.setattr(width_depth, "WIDTHS", (8,))
    monkeypatch.setattr(width_depth, "DEPTHS", (2,))
    monkeypatch.setattr(width_depth, "LEARNING_RATE", 1e38)
    assert run("study", "width-depth", "--out", tmp_path, "--seeds", 2) == 0
    said = capsys.readouterr().out
    assert said.count("2 of 2 diverged") == 3 and DIVERGED in said
    assert [row["diverged"] for row in csv.DictReader((tmp_path / "study.csv").open())] == ["2"] * 3
    content = json.loads((tmp_path / "study.json").read_text())
    assert [(row["diverged"], row["runs"]) for row in content["rows"]] == [(2, 2)] * 3

    assert run("publish", tmp_path, "--output", tmp_path / "mine.json") == 0
    text = markdown(json.loads((tmp_path / "mine.json").read_text()))
    assert text.count("| 2 of 2 diverged |\n") == 3 and f"\n\n{DIVERGED}\n\n" in text
    assert text.splitlines()[0].endswith("|  |")
