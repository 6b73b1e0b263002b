"""What `--jobs` saves: two runs at a time against the same runs one after the other, a thread each."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cost.table import Line
from benchmarks.cost.timing import interleave, ratio
from benchmarks.progress import Progress
from benchmarks.runner import run_all
from benchmarks.settings import resolve


def measure(rounds: int, jobs: int = 2, experiences: int = 60) -> Iterator[Line]:
    """Measure as many runs of naive on permuted digits as there are processes.

    Args:
        rounds: Interleaved rounds.
        jobs: Processes.
        experiences: Length of the runs.
    """
    runs = [resolve("permuted-digits", "naive", seed, experiences=experiences) for seed in range(jobs)]

    def block(at_a_time: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            run_all(runs, Path(folder), at_a_time, [], Progress())
            return time.perf_counter() - start

    times = interleave({"one": lambda: block(1), "all": lambda: block(jobs)}, rounds, warm_up=0)
    yield Line(
        "processes",
        f"permuted-digits, {jobs} runs",
        f"--jobs {jobs}",
        "time / one after the other",
        ratio(times, "all", "one"),
    )
