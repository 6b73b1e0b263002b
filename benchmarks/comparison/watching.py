"""The page while runs are going on: it is written again and again, and loads itself as often."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.comparison.live import Live, unfinished_runs
from benchmarks.comparison.report import html_page
from benchmarks.comparison.results import read_runs
from benchmarks.comparison.rows import comparison_rows
from benchmarks.writing import write_whole
from plasticity.errors import UserError

SECONDS = 5.0
"""After how many seconds a page loads itself again."""

SHARE = 10
"""Writing the page takes one part in so many of the time, at most, so that it does not hold up the runs."""


def page(directory: Path, live: bool) -> str:
    """Renders the report with what there is by now, be it no finished run at all.

    Args:
        directory: the folder of results.
        live: whether to show unfinished runs too, and to let the page load itself again.

    Returns:
        An HTML document.

    Raises:
        UserError: if finished runs are corrupt or cannot be compared.
    """
    told = Live(unfinished_runs(directory), SECONDS, time.strftime("%H:%M:%S")) if live else None
    comparison = read_runs(directory) if any(directory.glob("*/*/seed-*/result.json")) else {}
    return html_page(comparison, comparison_rows(comparison), told)


def watch(directory: Path, output: Path, sleep: Callable[[float], Any] = time.sleep) -> None:
    """Writes the page whenever something has changed, until it is interrupted; then once more as it stays.

    Args:
        directory: the folder of results.
        output: the file to write; it is whole at any time.
        sleep: waits so many seconds; KeyboardInterrupt from it ends the watch.

    Raises:
        UserError: if there is no such folder, the file cannot be written, or finished runs are corrupt or cannot be
            compared.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is no folder; give the one after --out of `python -m benchmarks run`")
    before: Any = None
    try:
        while True:
            state, start = _state(directory), time.monotonic()
            if state != before:
                write_whole(output, page(directory, live=True))
                before = state
            sleep(max(SECONDS / 2, SHARE * (time.monotonic() - start)))
    except KeyboardInterrupt:
        write_whole(output, page(directory, live=False))


@contextmanager
def reporting(directory: Path, output: Path) -> Iterator[None]:
    """Keeps the page up to date while the block runs, in a process of its own that gives way to others.

    Args:
        directory: the folder of results.
        output: the file to write.

    Yields:
        Nothing.

    Raises:
        UserError: if the file cannot be written, or finished runs are corrupt or cannot be compared.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}") from None
    write_whole(output, page(directory, live=True))
    process = multiprocessing.get_context("spawn").Process(
        target=_follow, args=(directory, output, os.getpid()), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()
        write_whole(output, page(directory, live=False))


def _follow(directory: Path, output: Path, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends this process
    if hasattr(os, "nice"):
        os.nice(10)

    def sleep(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.5)
            if os.getppid() != parent:  # killed without a chance to end this process
                raise KeyboardInterrupt

    watch(directory, output, sleep)


def _state(directory: Path) -> list[tuple[str, int]]:
    """What changes whenever a run begins, goes on or ends."""
    found = []
    for path in (*directory.glob("*/*/seed-*/result.json"), *directory.glob("*/*/.seed-*.partial-*/metrics.jsonl")):
        try:
            found.append((str(path), path.stat().st_size))
        except OSError:  # gone meanwhile
            continue
    return sorted(found)
