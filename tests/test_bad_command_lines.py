"""Mistakes at the command line, in files that it reads, and in folders that it finds: one line each, that helps."""

import json
import os
import shutil

import pytest
from commands import run

from benchmarks.cli import main

ASKED = ("run", "split-digits", "--strategies", "naive", "--seeds", "1", "--experiences", "2", "--model", "mlp-2x8")


def said(words, capsys):
    """Run a command line that is a mistake; returns the line that it is answered with."""
    code, runs, line = run([str(word) for word in words], capsys)
    assert code == 2 and not runs and line.count("\n") == 1 and line.startswith("error: "), line
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "-1"], "neither a number of seeds nor FIRST-LAST"),
        (["--seeds", "9" * 25], "not below 2**63"),
        (["--seeds", "9" * 5000], "is not a whole number"),
        (["--seeds", "0-999999999"], "more than 100000 seeds"),
        (["--epochs", "1.5"], "'1.5' is not a whole number"),
        (["--epochs", "9" * 25], "epochs must be below 2**63"),
        (["--threads", "9" * 12], "threads must be at most 4096"),
        (["--learning-rate", "nan"], "learning rate must be a number of at least 0, not nan"),
        (["--learning-rate", "1e400"], "learning rate must be a number below"),
        (["--momentum", "inf"], "momentum must be a number below"),
        (["--weight-decay", "-1"], "weight decay must be a number of at least 0"),
        (["--lerning-rate", "1"], "unknown argument '--lerning-rate' (did you mean --learning-rate?)"),
        (["--batch", "7"], "unknown argument '--batch' (did you mean --batch-size?)"),
        (["extra"], "unknown argument 'extra'"),
        (["--model", ""], "unknown model ''"),
        (["--model", "mlp-999999999x9"], "more than 1,000,000,000 weights"),
        (["--optimizer", ""], "unknown optimizer ''"),
        (["--scenario", ""], "no scenario ''"),
        (["--device", "meta"], "device 'meta' cannot be used"),
        (["--device", ""], "device '' cannot be used"),
        (["--out", ""], "'' cannot name a file or folder"),
        (["--out", "a\0b"], "cannot name a file or folder"),
        (["--strategies", "redo:tau=0.1:tau=0.2"], "sets the option 'tau' twice"),
        (["--strategies", "redo:exclude=../x"], "cannot name a folder"),
        (["--strategies", "redo:exclude=" + "x" * 300], "cannot name a folder"),
    ],
)
def test_words_without_meaning(words, message, tmp_path, capsys):
    assert message in said([*ASKED, "--out", tmp_path, *words], capsys)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("redo:dry_run=no", "dry_run must be True or False, not 'no'"),
        ("redo:dry_run=1", "dry_run must be True or False, not 1"),
        ("redo:tau=true", "tau must lie in [0, 1], not True"),
        ("redo:tau=NaN", "tau must lie in [0, 1], not nan"),
        ('redo:tau="0.1"', "tau must lie in [0, 1], not '0.1'"),
        ("redo:seed=-1", "seed must be a whole number from 0 to 2**63 - 1, not -1"),
        ("redo:preset=[]", "unknown preset []"),
        ("redo:groups=[]", "groups cannot be declared in the name of a strategy"),
        ("hyper-hypo:taw=1", "has no argument 'taw'; there are: mode"),
        ("hyper-hypo:percent=abc", "percent must be a number in [0, 50], not 'abc'"),
        ("synaptic-stripping:guard=0", "guard must be True or False, not 0"),
        ("synaptic-stripping:rounds=true", "rounds must be a whole number of at least 0, not True"),
        ("continual-backprop:transfer=no", "transfer must be True or False, not 'no'"),
        ("l2:strength=1e400", "strength must be a number below 8e307, not inf"),
        ("replay:mem_size=-1", "mem_size must be a whole number of at least 1, not -1"),
        ("plasticity-injection:share=nan", "share must be a number in [0, 1], not nan"),
        ("leaky-relu:slope=abc", "slope must be a number in [0, 1], not 'abc'"),
        ("normalize-and-project:layer_norm=no", "layer_norm must be True or False, not 'no'"),
        ("upgd:sigma=abc", "sigma must be a number of at least 0, not 'abc'"),
        ("upgd:foo=1", "upgd has no option 'foo'; there are: rate, lr"),
    ],
)
def test_options_of_other_kinds_are_refused_before_training(option, message, tmp_path, capsys):
    assert main([*ASKED, "--strategies", option, "--out", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1 and not list(tmp_path.rglob("seed-*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 3\nepochs: 5", "the key 'epochs' stands there twice"),
        ("strategies: [redo: {tau: 0.1, tau: 0.2}]", "the key 'tau' stands there twice"),
        ("epoch: 3", "unknown key 'epoch' (did you mean epochs?)"),
        ("seeds: 1:30", "'1:30' is not a whole number"),
        ("epochs: 2024-01-01", "'2024-01-01' is not a whole number"),
        ("epochs: 1.0", "'1.0' is not a whole number"),
        ("strategies: &a [*a]", "a list is in itself"),
        ("[" * 1200, "is not valid YAML: it is nested too deeply"),
        ("seeds: " + "9" * 5000, "is not valid YAML"),
        ("strategies: [redo: {tau: '0.1'}, naive: 3]", "options are written {name: value}"),
    ],
)
def test_files_that_do_not_say_what_they_mean(text, message, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    given = [] if "seeds" in text else ["--seeds", "1"]
    given += [] if "strategies" in text else ["--strategies", "naive"]
    assert message in said(["run", "split-digits", "--config", path, *given, "--out", tmp_path], capsys)


def test_numbers_in_files_are_what_they_look_like(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("strategies: [redo: {tau: 1e-3}]\nlearning_rate: 1e-3\nseeds: 2-3\nbatch_size: 16")
    code, runs, _ = run(["run", "split-digits", "--config", str(path), "--out", str(tmp_path)], capsys)
    assert code == 0 and [(each.strategy, each.seed) for each in runs] == [("redo:tau=0.001", 2), ("redo:tau=0.001", 3)]
    assert {(each.learning_rate, each.batch_size) for each in runs} == {(0.001, 16)}


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("ünïcode 目录")
    assert main([*ASKED, "--epochs", "1", "--out", str(out)]) == 0
    return out


def test_folders_of_any_name_are_read_again(finished, capsys):
    assert main(["compare", str(finished)]) == 0
    assert main([*ASKED, "--epochs", "1", "--out", str(finished)]) == 0
    assert "1 were there already" in capsys.readouterr().out


DAMAGE = {
    "another version": ("config.json", lambda text: text.replace('"format": 1', '"format": 99'), "another version"),
    "another program": ("config.json", lambda text: '{"name": "something else"}', "is not a finished run"),
    "a list": ("config.json", lambda text: "[1, 2]", "is not a finished run"),
    "settings of another kind": ("config.json", lambda text: '{"settings": 3}', "is not a finished run"),
    "half of the settings": ("config.json", lambda text: text[: len(text) // 2], "is not a finished run"),
    "half of the result": ("result.json", lambda text: text[: len(text) // 2], "is not a finished run"),
    "no result": ("result.json", None, "is not a finished run"),
    "bytes": ("result.json", lambda text: "\udcff\udcfe", "is not a finished run"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_result_folders_that_are_not_what_they_seem(damage, finished, tmp_path, capsys):
    name, change, message = DAMAGE[damage]
    shutil.copytree(finished, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob(name)
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
    before = sorted((each.name, each.stat().st_size) for each in path.parent.iterdir())
    assert main([*ASKED, "--epochs", "1", "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert message in line and str(path.parent) in line and line.count("\n") == 1
    assert sorted((each.name, each.stat().st_size) for each in path.parent.iterdir()) == before
    code = main(["compare", str(tmp_path / "out")])
    line = capsys.readouterr().err
    assert code == 2 and line.count("\n") == 1 and str(tmp_path / "out") in line


def test_a_stored_configuration_of_another_version_is_not_run(finished, tmp_path, capsys):
    (path,) = finished.rglob("config.json")
    content = json.loads(path.read_text())
    for change, message in (
        ({"format": 99}, "written by another version"),
        ({"seed": -1}, "seed should be a whole number of at least 0"),
        ({"settings": 3}, "settings should be keys and values"),
        ({"settings": {**content["settings"], "epocs": 1}}, "unknown key 'epocs' (did you mean epochs?)"),
    ):
        other = tmp_path / "config.json"
        other.write_text(json.dumps({**content, **change}))
        assert message in said(["run", "--config", other, "--out", tmp_path / "out"], capsys)


def test_places_that_cannot_be_written_to(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    places = [file, file / "below", "/proc/nothing"]
    if os.geteuid():  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        places.append(tmp_path / "closed")
    for place in places:
        assert main([*ASKED, "--out", str(place)]) == 2
        line = capsys.readouterr().err
        assert "cannot write to" in line and str(place) in line and line.count("\n") == 1


def test_data_cut_short_are_named(tmp_path, capsys):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(bytes(3073 * 3 + 17))
    words = ["run", "split-cifar10", "--strategies", "naive", "--seeds", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--data", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert "data_batch_1.bin" in line and line.count("\n") == 1
