"""The page while runs are going on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_comparison_results import write_benchmark, write_run

from benchmarks.cli import main
from benchmarks.comparison import compare, watching
from benchmarks.comparison.live import unfinished_runs
from benchmarks.comparison.results import read_runs
from plasticity.errors import UserError


def write_unfinished(directory, strategy="naive", seed=3, done=2, experiences=6, benchmark="permuted-digits"):
    """Writes what the runner leaves of a run that has `done` experiences behind it."""
    folder = directory / benchmark / strategy / f".seed-{seed}.partial-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    config = {"format": 1, "benchmark": benchmark, "strategy": strategy, "seed": seed}
    config |= {"settings": {"experiences": experiences}, "environment": {}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    lines = []
    for i in range(done):
        for j in range(i + 1):
            lines.append(("Top1_Acc_Exp/eval_phase/test_stream", j, 0.9 - 0.1 * j - 0.05 * (i - j)))
        lines.append(("DeadUnits_Exp/eval_phase/train_stream", i, 0.1 * i))
        lines.append(("Loss_MB/train_phase/train_stream/Task000", i, 0.5))
    written = [json.dumps({"name": f"{name}/Exp{index:03d}", "value": value, "x": 1}) for name, index, value in lines]
    (folder / "metrics.jsonl").write_text("\n".join([*written, '{"name": "Top1_Acc_Exp/eval_pha']), encoding="utf-8")
    return folder


def test_unfinished_runs_are_read_as_far_as_they_are(tmp_path):
    write_benchmark(tmp_path, seeds=1)
    write_unfinished(tmp_path, "redo", done=3)
    write_unfinished(tmp_path, "naive", done=0)
    broken = write_unfinished(tmp_path, "fresh")
    (broken / "config.json").write_text('{"benchmark": ', encoding="utf-8")
    found = unfinished_runs(tmp_path)
    assert [(run.strategy, run.seed, run.done, run.experiences) for run in found] == [
        ("naive", 3, 0, 6),
        ("redo", 3, 3, 6),
    ]
    assert found[1].learning_accuracy == pytest.approx({0: 0.9, 1: 0.8, 2: 0.7})  # not what later tests found
    assert found[1].dead_fraction == pytest.approx({0: 0.0, 1: 0.1, 2: 0.2})


def test_the_page_shows_them_beside_what_is_finished(tmp_path):
    write_benchmark(tmp_path, seeds=2)
    write_unfinished(tmp_path, "redo", done=3)
    page = watching.page(tmp_path, live=True)
    assert "Runs that are not finished" in page and "3 of 6" in page and "0.700" in page
    final = watching.page(tmp_path, live=False)
    assert "Runs that are not finished" not in final and 'id="pause"' not in final
    assert final == compare(tmp_path, "html")


def test_there_is_a_page_before_any_run_is_finished(tmp_path):
    assert "There are none just now." in watching.page(tmp_path, live=True)
    write_unfinished(tmp_path)
    page = watching.page(tmp_path, live=True)
    assert "0 finished runs" in page and "2 of 6" in page


def test_watching_writes_when_something_has_changed(tmp_path, monkeypatch):
    results, output = tmp_path / "results", tmp_path / "page.html"
    results.mkdir()
    written = []
    monkeypatch.setattr(watching, "page", lambda directory, live: f"{live} {len(unfinished_runs(directory))}")
    monkeypatch.setattr(watching, "write_whole", lambda path, text: written.append((path, text)))
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            write_unfinished(results)
        if len(waits) == 4:
            write_unfinished(results, done=4)
        if len(waits) == 6:
            raise KeyboardInterrupt

    watching.watch(results, output, sleep)
    assert written == [(output, text) for text in ("True 0", "True 1", "True 1", "False 1")]
    assert min(waits) >= watching.SECONDS / 2


def test_writing_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "page", lambda directory, live: time.sleep(0.3) or "")

    def sleep(seconds):
        assert seconds >= watching.SHARE * 0.3
        raise KeyboardInterrupt

    watching.watch(tmp_path, tmp_path / "page.html", sleep)


def test_watching_is_refused_where_it_makes_no_sense(tmp_path, capsys):
    for words in (["--watch"], ["--watch", "--output", "x.html"], ["--format", "html", "--watch"]):
        assert main(["compare", str(tmp_path), *words]) == 2
        assert capsys.readouterr().err == "error: --watch needs --format html and --output FILE\n"
    absent = str(tmp_path / "absent")
    assert main(["compare", absent, "--format", "html", "--output", str(tmp_path / "x.html"), "--watch"]) == 2
    assert f"{absent} is no folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot write"), watching.reporting(tmp_path, tmp_path / "absent" / "x.html"):
        pytest.fail("the runs began")


def until(condition, seconds=300):  # a process begins slowly on a busy machine
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def test_the_command_line_watches_until_it_is_interrupted(tmp_path):
    results, output = tmp_path / "results", tmp_path / "page.html"
    write_unfinished(results)
    command = [sys.executable, "-m", "benchmarks", "compare", str(results), "--format", "html", "--output", str(output)]
    process = subprocess.Popen(
        [*command, "--watch"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        until(lambda: "2 of 6" in text_of(output))
        write_run(results, "redo")
        until(lambda: "1 finished run" in text_of(output))
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
    finally:
        process.kill()
    assert "Runs that are not finished" not in text_of(output)
    assert "end with Ctrl-C" in process.stdout.read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "results"]


def test_a_run_keeps_its_page_up_to_date(tmp_path):
    results, output = tmp_path / "results", tmp_path / "page.html"
    with watching.reporting(results, output):
        assert "0 finished runs" in text_of(output)
        write_unfinished(results)
        until(lambda: "2 of 6" in text_of(output))
        write_run(results, "redo")
    assert "1 finished run" in text_of(output) and "Runs that are not finished" not in text_of(output)


def test_run_writes_its_report(tmp_path, capsys):
    words = ["run", "permuted-digits", "--strategies", "naive", "--seeds", "1", "--experiences", "1", "--epochs", "1"]
    assert main([*words, "--out", str(tmp_path / "results"), "--report", str(tmp_path / "page.html")]) == 0
    assert list(read_runs(tmp_path / "results")) == ["permuted-digits"]
    assert "1 finished run" in text_of(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == compare(tmp_path / "results", "html")
