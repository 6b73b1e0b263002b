"""Studies as a user meets them: short versions of all of them from the command line, and how tables are written."""

import csv
import json

import pytest
import torch

from benchmarks.cli import main
from benchmarks.studies import STUDIES, Asked, demon_pruning, dying_units, get_study, hyper_hypo, study_run, width_depth
from benchmarks.studies.study import over_seeds
from benchmarks.studies.tables import Column, cell, csv_text, json_text, number, plain_text, written


@pytest.fixture
def short(monkeypatch):
    """Cut every study down to a few seconds."""
    one = dying_units.Stream("one data set", "split-digits", {"experiences": 1, "epochs": 4, "model": "mlp-1x8"})
    monkeypatch.setattr(dying_units, "STREAMS", (one,))
    monkeypatch.setattr(dying_units, "OPTIMIZERS", {"Adam": dying_units.OPTIMIZERS["Adam"]})
    monkeypatch.setattr(dying_units, "RATES", {"Adam": (3e-3, 1e-2)})
    monkeypatch.setattr(dying_units, "DECAYS", {})
    monkeypatch.setattr(dying_units, "BATCHES", (32, 64))
    monkeypatch.setattr(dying_units, "NOISES", (0.0, 0.01))
    monkeypatch.setattr(width_depth, "BENCHMARKS", {"split-digits": {"epochs": 2, "batch_size": 128}})
    monkeypatch.setattr(width_depth, "WIDTHS", (8,))
    monkeypatch.setattr(width_depth, "DEPTHS", (2,))
    monkeypatch.setattr(hyper_hypo, "BENCHMARKS", ("digits-turned",))
    monkeypatch.setattr(hyper_hypo, "SALIENCIES", ("entropy",))
    monkeypatch.setattr(hyper_hypo, "ENDS", ("hypo",))
    declare = hyper_hypo.study_run
    monkeypatch.setattr(hyper_hypo, "study_run", lambda *a: declare(*a, model="mlp-1x20", epochs=2, batch_size=128))


@pytest.mark.parametrize("name", ["dying-units", "width-depth", "hyper-hypo"])
def test_a_short_study_runs_once_and_writes_its_table(name, short, tmp_path, capsys):
    assert main(["study", name, "--out", str(tmp_path), "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    study = get_study(name)
    runs = set(study.runs(Asked(2)))
    assert sorted(path.parent for path in tmp_path.rglob("result.json")) == sorted(tmp_path / r.folder for r in runs)
    assert (tmp_path / "study.txt").read_text() in printed and study.question in printed
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["study"] == name and content["runs"] == len(runs) and content["seeds"] == 2
    assert content["command"] == f"python -m benchmarks study {name} --seeds 2 --out DIR"
    assert torch.__version__.startswith(content["environment"]["torch"])
    for row in content["rows"]:
        assert set(row) == {column.key for column in study.columns}
        assert 0 < row["accuracy"]["mean"] <= 1 and row["accuracy"]["low"] <= row["accuracy"]["high"]
    assert len(list(csv.reader((tmp_path / "study.csv").open()))) == 1 + len(content["rows"])
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert main(["study", name, "--out", str(tmp_path), "--seeds", "2"]) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", STUDIES)
def test_no_two_runs_of_a_study_share_a_folder(name, full):
    from benchmarks.runner import import_modules

    study = get_study(name)
    import_modules(list(study.modules))
    assert study.name == name
    runs = set(study.runs(Asked(2, full)))
    assert len({run.folder for run in runs}) == len(runs) > 10
    assert {run.seed for run in runs} == {0, 1}


def test_an_unknown_study_is_answered_in_words(tmp_path, capsys):
    assert main(["study", "dying-unit", "--out", str(tmp_path)]) == 2
    assert "unknown study 'dying-unit' (did you mean dying-units?)" in capsys.readouterr().err


def test_a_study_finds_out_that_data_are_missing_before_it_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("socket.create_connection", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(demon_pruning, "STRENGTHS", (1e-3,))
    assert main(["study", "demon-pruning", "--out", str(tmp_path / "out"), "--data", str(empty)]) == 2
    assert "cifar10" in capsys.readouterr().err
    assert not list(tmp_path.rglob("result.json"))


def test_settings_are_part_of_a_runs_place_and_device_and_data_reach_it(tmp_path):
    run = study_run(Asked(1, data=tmp_path), "fast/lr-1", "split-digits", "naive", 4, learning_rate=1.0)
    assert run.folder.as_posix() == "fast/lr-1/split-digits/naive/seed-4"
    assert run.learning_rate == 1.0 and run.data == tmp_path and run.epochs == 5


# --- tables ----------------------------------------------------------------------------------------------------

COLUMNS = (Column("name", "name"), Column("rate", "rate"), Column("share", "share of\nunits", "what it is", 2))
ROWS = [
    {"name": "a", "rate": 1e-5, "share": {"mean": 0.25, "low": 0.125, "high": 0.375}},
    {"name": "long", "rate": 3.0, "share": None},
]


def test_a_table_is_aligned_and_says_what_it_shows():
    lines = plain_text("Why?", ROWS, COLUMNS, "Because.").splitlines()
    assert lines[0] == "Why?" and lines[-1] == "Because."
    assert lines[2:7] == [
        " " * 15 + "share of",
        "name   rate       units",
        "-" * 23,
        "a     1e-05  0.25 ±0.12",
        "long      3           –",
    ]
    assert "share of units: what it is" in lines


def test_intervals_take_three_columns_in_csv_and_nothing_is_rounded():
    rows = list(csv.reader(csv_text(ROWS, COLUMNS).splitlines()))
    assert rows == [
        ["name", "rate", "share_mean", "share_low", "share_high"],
        ["a", "1e-05", "0.25", "0.125", "0.375"],
        ["long", "3.0", "", "", ""],
    ]
    content = json.loads(json_text({"study": "x"}, ROWS, "Because.", COLUMNS, [{"name": "b"}]))
    assert content["rows"] == ROWS and content["study"] == "x" and content["finding"] == "Because."
    assert content["summary"] == [{"name": "b"}] and content["columns"][2]["meaning"] == "what it is"


def test_numbers_as_people_write_them():
    assert [number(v, 2, sign=True) for v in (0.126, -0.126, -0.001, 0)] == ["+0.13", "−0.13", "0.00", "0.00"]
    assert written({"mean": -0.5, "low": -1.0, "high": 0.0}, 1) == "−0.5 [−1.0, 0.0]"
    assert written({"mean": 0.5, "low": None, "high": None}, 1) == "0.5"
    assert written({"mean": None, "low": None, "high": None}) == "undefined"
    assert [cell(v, 1) for v in (None, "text", 3, 0.25)] == ["–", "text", "3", "0.25"]


def test_a_mean_over_seeds_is_undefined_where_one_of_them_is():
    assert over_seeds([0.1, float("nan")])["mean"] is None
    found = over_seeds([0.1, 0.3])
    assert found["mean"] == pytest.approx(0.2) and found["high"] - found["mean"] == pytest.approx(
        12.706 * 0.1, rel=1e-3
    )
