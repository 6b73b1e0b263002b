"""Runs that are killed at any moment and started again end with the numbers of runs that were not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

from killed_runs import LAST
from resuming_runs import same, without_times
from strategy_runs import acting

from benchmarks.cli import main
from benchmarks.resuming.plain import from_bytes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KILLS = 20
STRATEGIES = (
    "naive",
    "synaptic-stripping",
    "continual-backprop",
    "demon-pruning-shrink",
    "replay",
    "upgd",
    "adaptive",
    "fresh",
    "hare-tortoise",
)
TICKS = os.sysconf("SC_CLK_TCK")


class Runs:
    """Does runs in a process each."""

    def __init__(self):
        path = os.pathsep.join([str(ROOT), str(HERE)])
        self.server = subprocess.Popen(
            [sys.executable, str(HERE / "killed_runs.py")],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.server.stdout.readline() == "ready\n"

    def run(self, strategy, out, kill_after=None):
        """Do a run; kill it after some seconds of the processor. Returns its exit status and what time it took."""
        self.server.stdin.write(json.dumps({"strategy": acting(strategy), "out": str(out)}) + "\n")
        self.server.stdin.flush()
        process = int(self.server.stdout.readline())
        used = 0.0
        while kill_after is not None and (now := processor_seconds(process)) is not None:
            used = now
            if used >= kill_after:
                os.kill(process, signal.SIGKILL)
                break
            time.sleep(0.001)
        return int(self.server.stdout.readline()), used

    def end(self):
        self.server.stdin.close()
        self.server.wait(timeout=60)


def processor_seconds(process):
    """Seconds of the processor that a process has used, None once it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[11]) + int(fields[12])) / TICKS


def content(out, strategy):
    """What a finished run has left: its result, its metric values and its last checkpoint."""
    (folder,) = out.glob("permuted-digits/*/seed-0")
    assert folder.parent.name == acting(strategy)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "metrics.jsonl", "result.json"]
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([LAST, "seed-0"])  # nothing hidden
    result = json.loads((folder / "result.json").read_text())
    state = from_bytes((folder.parent / LAST).read_bytes())
    state.pop("stopwatch")
    return without_times(result), (folder / "metrics.jsonl").read_bytes(), state


def test_twenty_kills_at_any_moment(tmp_path, capfd):
    chance = random.Random(1)
    runs = Runs()
    undisturbed, seconds = {}, {}
    kills = attempts = 0
    try:
        for attempt, strategy in enumerate(cycle(STRATEGIES)):
            if kills >= KILLS and attempt >= len(STRATEGIES):
                break
            if strategy not in undisturbed:
                out = tmp_path / f"whole-{attempt}"
                status, used = runs.run(strategy, out, kill_after=1e9)
                assert status == 0
                undisturbed[strategy], seconds[strategy] = content(out, strategy), used
            out = tmp_path / f"killed-{attempt}"
            while True:
                attempts += 1
                assert attempts < 10 * KILLS
                # Each strategy is killed two or three times, as far as it has come by then, and then left alone.
                due = kills < KILLS * (attempt + 1) / len(STRATEGIES)
                kill_after = chance.uniform(0.2, 0.95) * seconds[strategy] if due else None
                status, used = runs.run(strategy, out, kill_after)
                kills += status == -signal.SIGKILL
                if status == 0:
                    break
                assert status == -signal.SIGKILL, strategy
                assert not list(out.rglob("seed-0")), strategy  # nothing that looks finished
            one, other = undisturbed[strategy], content(out, strategy)
            assert one[:2] == other[:2], strategy
            assert same(one[2], other[2]) is None, strategy
    finally:
        runs.end()
    assert kills >= KILLS
    told = capfd.readouterr().err
    assert told.count("goes on after") >= 2 and "not used" not in told, told


def checkpoints(out):
    """Checkpoints of runs that still have something to do."""
    try:
        return [path for path in out.rglob("checkpoint-?") if not (path.parent / "result.json").exists()]
    except FileNotFoundError:  # a folder has got its name meanwhile
        return []


def test_killed_from_the_command_line_with_workers_and_started_again(tmp_path):
    asked = ["run", "permuted-digits", "--strategies", "naive,redo", "--seeds", "1", "--epochs", "1"]
    asked += ["--experiences", "8", "--jobs", "2"]

    def start():
        command = [sys.executable, "-m", "benchmarks", *asked, "--out", str(tmp_path / "killed")]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    deadline = time.monotonic() + 500
    while True:
        killed = start()
        while killed.poll() is None and not checkpoints(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        killed.kill()
        told = killed.communicate()[1]
        workers = [int(path.name.rsplit("-", 1)[1]) for path in tmp_path.glob("*/*/*/.seed-0.partial-*")]
        while any(processor_seconds(worker) is not None for worker in workers):  # they end soon after their parent
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if checkpoints(tmp_path):
            break
        assert len(list(tmp_path.rglob("result.json"))) == 2, told  # it was too quick
        shutil.rmtree(tmp_path / "killed")
    again = start()
    told = again.communicate(timeout=300)[1]
    assert again.returncode == 0 and "goes on after" in told, told
    assert main([*asked[:-1], "1", "--out", str(tmp_path / "whole")]) == 0
    for path in (tmp_path / "whole").rglob("metrics.jsonl"):
        other = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == other.read_bytes()
    assert not list(tmp_path.rglob(".*"))
