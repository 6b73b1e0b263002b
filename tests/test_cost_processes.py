"""Costs of processes: the same runs, one after the other and at a time."""

import subprocess

import pytest

from benchmarks.cost import processes


def test_processes_are_measured_by_whole_runs():
    asked = []
    (line,) = processes.measure(2, 3, experiences=4, run=asked.append)
    assert line.case == "permuted-digits, 3 runs of 4 experiences" and line.ratio.rounds == 2
    assert [words[-1] for words in asked] == ["1", "3", "3", "1"]
    assert all(words[:6] == ["run", "permuted-digits", "--strategies", "naive", "--seeds", "3"] for words in asked)
    assert all(words[-4:-1] == ["--experiences", "4", "--jobs"] for words in asked)


def test_a_command_that_fails_is_no_time():
    with pytest.raises(subprocess.CalledProcessError):
        processes._command(["run", "permuted-digits", "--no-such-option"])
