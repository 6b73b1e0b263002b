"""What `--jobs` saves: two runs at a time against the same runs one after the other, a thread each."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.cost.table import Line
from benchmarks.cost.timing import interleave, ratio

ROOT = Path(__file__).resolve().parents[2]


def measure(
    rounds: int,
    jobs: int = 2,
    experiences: int = 100,
    run: Callable[[list[str]], object] | None = None,
    options: Sequence[str] = (),
) -> Iterator[Line]:
    """Measure as many runs of naive on permuted digits as there are processes, from start to end of the command.

    Args:
        rounds: Interleaved rounds.
        jobs: Processes.
        experiences: Length of the runs.
        run: Takes the words after `python -m benchmarks`; None: runs that command.
        options: Further words of the runs.
    """
    run = run or _command

    def block(at_a_time: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            words = ["run", "permuted-digits", "--strategies", "naive", "--seeds", str(jobs), "--out", folder]
            start = time.perf_counter()
            run([*words, "--experiences", str(experiences), "--jobs", str(at_a_time), *options])
            return time.perf_counter() - start

    times = interleave({"one": lambda: block(1), "all": lambda: block(jobs)}, rounds, warm_up=0)
    yield Line(
        "processes",
        f"permuted-digits, {jobs} runs of {experiences} experiences",
        f"--jobs {jobs}",
        "time / one after the other",
        ratio(times, "all", "one"),
    )


def _command(words: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", *words]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
