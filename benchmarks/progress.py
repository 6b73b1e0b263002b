"""Progress for a person: bars on a terminal, nothing elsewhere."""

import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from benchmarks.settings import RunSettings


class Progress:
    """Shows how far each run is, on standard error, where that is a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[Any, TaskID] = {}

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def found(self, finished: int, runs: int) -> None:
        """Start: some of the runs are there already."""
        self._all = self._bars.add_task("all runs", total=runs, completed=finished)

    def advance(self, run: RunSettings, experiences: int) -> None:
        """A run has finished so many experiences."""
        if run.folder not in self._tasks:
            title = f"{run.benchmark} {run.strategy} seed {run.seed}"
            self._tasks[run.folder] = self._bars.add_task(title, total=run.experiences)
        self._bars.update(self._tasks[run.folder], completed=experiences)

    def finish(self, run: RunSettings, seconds: float) -> None:
        """A run is complete."""
        if run.folder in self._tasks:
            self._bars.remove_task(self._tasks.pop(run.folder))
        self._bars.console.print(
            f"{run.benchmark} {run.strategy} seed {run.seed}: {seconds:.1f} s of training"
        ) if not self._bars.disable else None
        self._bars.advance(self._all)
