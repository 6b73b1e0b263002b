"""What a study is: runs that it declares, and a function that turns them into a table and a finding."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison.statistics import Interval, student_interval
from benchmarks.progress import Progress
from benchmarks.runner import import_modules, run_all
from benchmarks.settings import RunSettings, environment, resolve
from benchmarks.studies.tables import Column, csv_text, json_text, plain_text


@dataclass(frozen=True)
class Asked:
    """What a person asks of a study.

    Args:
        seeds: Every run is done on seeds 0 to seeds - 1.
        full: Whether it is to be the long version.
        data: Folder of the data, see `benchmarks.data`.
        device: Where networks are trained.
    """

    seeds: int
    full: bool = False
    data: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class StudyRun(RunSettings):
    """The settings of a run, and what tells it from runs of the same benchmark and strategy.

    Args:
        variant: Name of the folder above the run's own; it may have parts.
    """

    variant: str = ""

    @property
    def folder(self) -> Path:
        """Where the run belongs below the folder of the study."""
        return Path(self.variant) / super().folder


def study_run(asked: Asked, variant: str, benchmark: str, strategy: str, seed: int, **settings: Any) -> StudyRun:
    """Declare a run; settings as in `benchmarks.settings.resolve`, the benchmark's own where not given."""
    found = resolve(benchmark, strategy, seed, device=asked.device, data=asked.data, **settings)
    return StudyRun(**{each.name: getattr(found, each.name) for each in fields(found)}, variant=variant)


@dataclass(frozen=True)
class Report:
    """What came out of a study.

    Args:
        rows: Of the table, each with an entry for every column: text, a number, an interval, or None where undefined;
            and with what `Finished.diverged` returns.
        finding: One paragraph in plain words.
        summary: Fewer rows, likewise, to be shown to people in place of the others.
    """

    rows: list[dict[str, Any]]
    finding: str
    summary: list[dict[str, Any]] | None = None


class Finished:
    """Results of finished runs, by run.

    Args:
        results: The content of result.json, by the folder of the run below that of the study.
    """

    def __init__(self, results: Mapping[Path, dict[str, Any]]):
        self.results = results

    def __getitem__(self, run: StudyRun) -> dict[str, Any]:
        return self.results[run.folder]

    def measures(self, runs: Iterable[StudyRun], name: str) -> np.ndarray:
        """Return a measure of some runs, in their order, NaN where it is undefined."""
        values = [self[run]["measures"][name] for run in runs]
        return np.array([np.nan if value is None else value for value in values])

    def diverged(self, runs: Iterable[StudyRun]) -> dict[str, int]:
        """Return what a row says of its runs if any has diverged: "diverged", how many, of how many "runs"."""
        marks = ["diverged" in self[run] for run in runs]
        return {"diverged": sum(marks), "runs": len(marks)} if any(marks) else {}


@dataclass(frozen=True)
class Study:
    """A question, the runs that answer it, and how.

    Args:
        name: As on the command line.
        question: What it asks, in one sentence.
        source: Where the question comes from.
        columns: Of its table.
        summary_columns: Of the shorter one, if there is one.
        seeds: How many seeds by default.
        full_seeds: How many in the full version.
        runs: Declares the runs.
        report: Gets what was asked and the finished runs.
        modules: Import names of modules that register what the runs need.
    """

    name: str
    question: str
    source: str
    columns: tuple[Column, ...]
    seeds: int
    full_seeds: int
    runs: Callable[[Asked], list[StudyRun]]
    report: Callable[[Asked, Finished], Report]
    modules: tuple[str, ...] = ()
    summary_columns: tuple[Column, ...] = ()


def last_treatment(result: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the last intervention of a run reported; None: there was none, or all were withheld."""
    return next((entry for entry in reversed(result["treatments"]) if "withheld" not in entry), None)


def over_seeds(values: np.ndarray | Sequence[float]) -> Interval:
    """Return the mean over seeds with Student's 95% interval; undefined where it is for any of the seeds."""
    array = np.asarray(values, dtype=np.float64)
    return student_interval(array if np.isfinite(array).all() else array[:0])


def run_study(study: Study, asked: Asked, out: Path, jobs: int = 1) -> Report:
    """Do the runs of a study that are not done yet, and write its table.

    Args:
        study: The study.
        asked: What is asked of it.
        out: Folder for the runs and for `study.txt`, `study.csv` and `study.json`.
        jobs: How many runs at a time.

    Raises:
        UserError: If data are missing, or there are finished runs with other settings in the folder.
    """
    import_modules(list(study.modules))
    runs = list(dict.fromkeys(study.runs(asked)))
    for _, some in groupby(sorted(runs, key=lambda run: run.benchmark), key=lambda run: run.benchmark):
        run_all(list(some), out, jobs, list(study.modules), Progress())
    finished = Finished({run.folder: json.loads((out / run.folder / "result.json").read_text()) for run in runs})
    report = study.report(asked, finished)
    head = {
        "study": study.name,
        "question": study.question,
        "source": study.source,
        "command": _command(study, asked),
        "full": asked.full,
        "seeds": asked.seeds,
        "runs": len(runs),
        "environment": environment(asked.device),
    }
    shown = (report.rows, study.columns) if report.summary is None else (report.summary, study.summary_columns)
    texts = {
        "json": json_text(head, report.rows, report.finding, study.columns, report.summary, study.summary_columns),
        "csv": csv_text(report.rows, study.columns),
        "txt": plain_text(study.question, *shown, report.finding),
    }
    for ending, text in texts.items():
        (out / f"study.{ending}").write_text(text, encoding="utf-8")
    return report


def _command(study: Study, asked: Asked) -> str:
    """Return the command line that does the same, with DIR for folders."""
    options = [f"--seeds {asked.seeds}", *(["--full"] if asked.full else [])]
    options += [f"--device {asked.device}"] if asked.device != "cpu" else []
    return " ".join(["python -m benchmarks study", study.name, *options, "--out DIR"])
