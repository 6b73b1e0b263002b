"""The runner and the command line, as a user meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.cli import main

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--experiences", "3", "--epochs", "1"]


def run(*arguments):
    return main([str(argument) for argument in arguments])


def line(capsys):
    """Return the one line on standard error."""
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    return text


def without_seconds(content):
    if isinstance(content, dict):
        return {key: without_seconds(value) for key, value in content.items() if key != "seconds"}
    if isinstance(content, list):
        return [without_seconds(value) for value in content]
    return content


def results(folder):
    return {path.relative_to(folder): json.loads(path.read_text()) for path in folder.rglob("result.json")}


def test_a_run_leaves_a_folder_with_three_files_and_is_not_run_again(tmp_path, capsys):
    arguments = ("run", "split-digits", "--strategies", "naive,fresh", "--seeds", 2, "--out", tmp_path, *SMALL)
    assert run(*arguments) == 0
    assert "4 runs done" in capsys.readouterr().out
    folder = tmp_path / "split-digits" / "naive" / "seed-1"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "metrics.jsonl", "result.json"]
    assert not list(tmp_path.rglob(".*"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"name", "value", "x"} <= set(lines[0])
    assert any(entry["name"] == "Top1_Acc_Exp/eval_phase/test_stream/Exp000" for entry in lines)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert run(*arguments) == 0
    assert "0 runs done, 4 were there already" in capsys.readouterr().out
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}


def test_equal_runs_differ_only_in_seconds_and_seeds_differ(tmp_path):
    for out in ("one", "two"):
        assert (
            run(
                "run",
                "split-digits",
                "--strategies",
                "synaptic-stripping",
                "--seeds",
                2,
                "--out",
                tmp_path / out,
                *SMALL,
            )
            == 0
        )
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert without_seconds(one) == without_seconds(two) and len(one) == 2
    first, second = (content["accuracy_matrix"] for content in one.values())
    assert first != second


def test_processes_give_the_results_that_one_process_gives(tmp_path):
    for jobs in (1, 2):
        command = [sys.executable, "-m", "benchmarks", "run", "split-digits", "--strategies", "naive,hyper-hypo"]
        command += ["--seeds", "2", "--out", str(tmp_path / str(jobs)), "--jobs", str(jobs), *SMALL]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "" and done.stdout.startswith("4 runs done")
    assert without_seconds(results(tmp_path / "1")) == without_seconds(results(tmp_path / "2"))


def test_the_results_are_what_the_comparison_reads(tmp_path, capsys):
    run("run", "split-digits", "--strategies", "naive,fresh", "--seeds", 2, "--out", tmp_path / "r", *SMALL)
    capsys.readouterr()
    assert run("compare", tmp_path / "r", "--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["strategy"], row["seeds"]) for row in rows] == [("naive", 2), ("fresh", 2)]
    matrix = results(tmp_path / "r")[Path("split-digits/naive/seed-0/result.json")]["accuracy_matrix"]
    assert [[value is None for value in row] for row in matrix] == [
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]
    assert run("compare", tmp_path / "r", "--format", "html", "--output", tmp_path / "report.html") == 0
    assert "split-digits" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("run", "split-digit", "--strategies", "naive", "--seeds", 1),
            r"unknown benchmark 'split-digit' \(did you mean",
        ),
        (("run", "split-digits", "--strategies", "nave", "--seeds", 1), "known are naive, fresh"),
        (("run", "split-digits", "--strategies", ",", "--seeds", 1), "names none"),
        (("run", "split-digits", "--strategies", "naive", "--seeds", 0), "at least 1, not 0"),
        (("run", "split-digits", "--strategies", "naive", "--seeds", "x"), "'x' is not a whole number"),
        (("run", "split-digits", "--strategies", "naive", "--seeds", 1, "--experiences", 11), "possible is 1 to 10"),
        (("run", "split-digits", "--strategies", "naive", "--seeds", 1, "--device", "cuda:99"), "cannot be used"),
        (("run", "split-digits", "--strategies", "naive", "--seeds", 1, "--model", "big"), "unknown model 'big'"),
        (
            ("run", "split-digits", "--strategies", "naive", "--seeds", 1, "--import", "no_such"),
            "cannot import 'no_such'",
        ),
        (("run", "split-digits", "--strategies", "naive", "--seeds", 1, "--scenario", "x"), "possible is class, task"),
        (
            ("run", "split-digits", "--strategies", "naive", "--seeds", 1, "--learning-rate", -1),
            "learning rate must be a number of at least 0, not -1",
        ),
        (("run", "split-digits", "--seeds", 1), "--strategies"),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_leaves_nothing(arguments, message, tmp_path, capsys):
    assert run(*arguments, "--out", tmp_path / "out") == 2
    import re

    assert re.search(message, line(capsys))
    assert not list(tmp_path.rglob("seed-*")) and not list(tmp_path.rglob("*.json"))


def test_missing_data_and_an_unwritable_folder_are_mistakes_too(tmp_path, capsys, monkeypatch):
    (tmp_path / "cifar-100-binary").mkdir()
    (tmp_path / "cifar-100-binary" / "train.bin").write_bytes(b"not it")
    asked = ("run", "cifar100-pairs", "--strategies", "naive", "--seeds", 1, "--out", tmp_path / "out")
    assert run(*asked, "--data", tmp_path) == 2
    assert "train.bin" in line(capsys)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert run("run", "split-digits", "--strategies", "naive", "--seeds", 1, "--out", tmp_path / "file") == 2
    assert "cannot write" in line(capsys)


def test_a_finished_run_with_other_settings_is_not_taken_for_an_answer(tmp_path, capsys):
    asked = ("run", "split-digits", "--strategies", "naive", "--seeds", 1, "--out", tmp_path, "--experiences", 2)
    assert run(*asked, "--epochs", 1) == 0
    assert run(*asked, "--epochs", 2) == 2
    assert "epochs 1, and 2 is asked for" in line(capsys)
    (tmp_path / "split-digits" / "naive" / "seed-0" / "result.json").write_text("{")
    assert run(*asked, "--epochs", 1) == 2
    assert "not a finished run" in line(capsys)


ENDLESS = [sys.executable, "-m", "benchmarks", "run", "permuted-digits", "--strategies", "naive", "--epochs", "1000"]
"""Takes an hour, so that it is still going on when it is killed."""


def test_an_interrupted_run_leaves_nothing_that_looks_finished(tmp_path):
    for number in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(
            [*ENDLESS, "--seeds", "1", "--out", str(tmp_path)],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        deadline = time.monotonic() + 300
        while not list(tmp_path.rglob("metrics.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(process.pid, number)
        assert process.wait(timeout=300) in (130, -number)
        assert not list(tmp_path.rglob("seed-*/result.json")) and not list(tmp_path.glob("*/*/seed-*"))
    assert list(tmp_path.rglob(".seed-0.partial-*"))  # what SIGKILL leaves is hidden …
    assert run("run", "permuted-digits", "--strategies", "naive", "--seeds", 1, "--out", tmp_path, *SMALL) == 0
    assert not list(tmp_path.rglob(".seed-0.partial-*"))  # … and cleared away by the next run


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    command = [*ENDLESS, "--seeds", "2", "--out", str(tmp_path), "--jobs", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(partial := list(tmp_path.rglob("metrics.jsonl"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    workers = [int(path.parent.name.rsplit("-", 1)[1]) for path in partial]
    process.kill()
    process.wait(timeout=300)
    assert process.pid not in workers
    while any(_runs(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list(tmp_path.glob("*/*/seed-*"))


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_module_of_the_users_registers_a_strategy_a_stream_and_a_model(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_research.py").write_text(
        "from functools import partial\n"
        "from torch import nn\n"
        "from benchmarks.models import register_model\n"
        "from benchmarks.streams import Benchmark, permuted_stream, register_benchmark\n"
        "from plasticity.plugins import SynapticStrippingPlugin\n"
        "from strategies import register\n"
        "register('mine', lambda context: [SynapticStrippingPlugin(fraction=0.1)], 'stronger stripping')\n"
        "register_model('tiny', lambda classes, shape, tasks: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(),"
        " nn.Linear(8, classes)))\n"
        "register_benchmark(Benchmark('mine', 'two', partial(permuted_stream, 'digits'), experiences=2, model='tiny',"
        " scenario='domain'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, "-m", "benchmarks"]
    listed = subprocess.run(
        [*command, "list", "--import", "my_research"], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert "stronger stripping" in listed.stdout and "tiny" in listed.stdout, listed.stderr
    asked = ["run", "mine", "--strategies", "mine,naive", "--seeds", "1", "--out", str(tmp_path / "r")]
    done = subprocess.run(
        [*command, *asked, "--import", "my_research", "--jobs", "2"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(results(tmp_path / "r")) == 2


def test_list_names_everything(capsys):
    assert run("list") == 0
    text = capsys.readouterr().out
    for name in ("permuted-digits", "split-cifar100", "cifar100-pairs", "synaptic-stripping", "hyper-hypo-random"):
        assert name in text


def test_help_exits_with_0(capsys):
    for arguments in (["--help"], ["run", "--help"], ["compare", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    assert "--strategies" in capsys.readouterr().out
