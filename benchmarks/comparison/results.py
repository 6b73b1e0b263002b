"""Finished runs, read from the folders that the runner leaves behind."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison.measures import as_accuracy_matrix
from benchmarks.comparison.validation import check_result, field, read_object
from plasticity.errors import UserError

REFERENCES = ("naive", "fresh")
"""Strategies that others are held against; they come first everywhere."""


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        benchmark: name of the benchmark.
        strategy: name of the strategy.
        seed: the seed of the run.
        scored: S indices, in order, of the experiences that are scored.
        accuracy_matrix: shape (S, S) for these, NaN where nothing was measured.
        units: T entries, what the hidden units did after each experience.
        online_accuracy: shape (S,), accuracy of each experience's training mini-batches before their updates, NaN where
            it was not measured.
        treatments: what the plugins of the run report of their interventions.
        measures: the run's measures by name; None where undefined.
        diverged: after which experience its network or loss was NaN or infinite for the first time; None: never.
        settings: how the benchmark was set up.
        environment: versions and machine.
    """

    benchmark: str
    strategy: str
    seed: int
    scored: list[int]
    accuracy_matrix: np.ndarray
    units: list[dict[str, Any]]
    online_accuracy: np.ndarray
    treatments: list[dict[str, Any]]
    measures: dict[str, float | None]
    settings: dict[str, Any]
    environment: dict[str, Any]
    diverged: int | None = None

    @property
    def learning_accuracy(self) -> np.ndarray:
        """Test accuracy on each experience just after learning it, shape (S,)."""
        return self.accuracy_matrix.diagonal()


Comparison = dict[str, dict[str, list[Run]]]
"""Runs by benchmark and strategy, in order of seed."""


def is_fresh(strategy: str) -> bool:
    """Whether a strategy takes a new network for every experience.

    Args:
        strategy: its name, with `+` between the parts of a combination.

    Returns:
        True for `fresh` and for combinations with it.
    """
    return "fresh" in strategy.split("+")


def read_run(folder: Path) -> Run:
    """Reads and checks one finished run.

    Args:
        folder: BENCHMARK/STRATEGY/seed-K, with config.json and result.json in it.

    Returns:
        The run.

    Raises:
        UserError: if a file is missing, unreadable, of another format, impossible, or of another run; it
            names the file.
    """
    benchmark, strategy = folder.parent.parent.name, folder.parent.name
    path = folder / "config.json"
    try:
        config = read_object(path)
        _check_place(config, folder)
        settings, environment = field(config, "settings", dict), field(config, "environment", dict)
        path = folder / "result.json"
        result = read_object(path)
        seed = _check_place(result, folder)
        measures = check_result(result, is_fresh(strategy))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    matrix = as_accuracy_matrix(result["accuracy_matrix"])
    online = np.array(result.get("online_accuracy", [None] * len(matrix)), dtype=np.float64)
    scored = list(result.get("scored", range(len(matrix))))
    matrix, online = matrix[np.ix_(scored, scored)], online[scored]
    units, treatments = result["units"], result["treatments"]
    facts = settings, environment, result.get("diverged")
    return Run(benchmark, strategy, seed, scored, matrix, units, online, treatments, measures, *facts)


def _check_place(content: dict[str, Any], folder: Path) -> int:
    seed = field(content, "seed", int)
    owner = "/".join((field(content, "benchmark", str), field(content, "strategy", str), f"seed-{seed}"))
    if owner != "/".join(folder.parts[-3:]):
        raise ValueError(f"belongs to {owner:.120}, not to the folder it is in")
    return seed


def _run_folders(directory: Path) -> list[Path]:
    # Names that start with a dot are the runner's unfinished work; other files and folders are the user's own.
    folders = [
        folder
        for folder in directory.glob("*/*/seed-*")
        if re.fullmatch(r"seed-\d+", folder.name)
        and folder.is_dir()
        and not any(part.startswith(".") for part in folder.relative_to(directory).parts)
    ]
    return sorted(folders, key=lambda folder: (folder.parent, int(folder.name[5:])))


def _hint(directory: Path) -> str:
    for pattern, levels in (("*/seed-*/result.json", 1), ("seed-*/result.json", 2)):
        if any(directory.glob(pattern)):
            return f"give the results folder above it: {directory.resolve().parents[levels - 1]}"
    return f"run: python -m benchmarks run permuted-digits --strategies naive,fresh --seeds 3 --out {directory}"


def _differing(runs: list[Run]) -> Iterator[str]:
    first = runs[0]
    for key in sorted({key for run in runs for key in run.settings if key != "seed"}):
        for run in runs:
            values = [json.dumps(r.settings[key]) if key in r.settings else "absent" for r in (first, run)]
            if values[0] != values[1]:
                places = [f"{r.strategy}/seed-{r.seed}" for r in (first, run)]
                yield f"{key} is {values[0]:.60} in {places[0]} and {values[1]:.60} in {places[1]}"
                break


def _check_settings(runs: list[Run]) -> None:
    benchmark = runs[0].benchmark
    differences = list(_differing(runs))
    if not differences:
        odd = next((run for run in runs if len(run.units) != len(runs[0].units)), None)
        if odd is None:
            return
        differences = [
            f"{runs[0].strategy}/seed-{runs[0].seed} has {len(runs[0].units)} experiences and "
            f"{odd.strategy}/seed-{odd.seed} has {len(odd.units)}"
        ]
    raise UserError(
        f"the runs of {benchmark} have different settings and cannot be compared: {'; '.join(differences)}"
        " (keep them in different folders)"
    )


def read_runs(directory: Path) -> Comparison:
    """Reads every finished run under a folder.

    Args:
        directory: what `python -m benchmarks run --out` was given: it holds BENCHMARK/STRATEGY/seed-K folders. Whatever
            else is in it, such as an unfinished run or a report, is left alone.

    Returns:
        The runs by benchmark (sorted by name) and strategy (`naive`, `fresh`, then sorted by name), in order of seed.

    Raises:
        UserError: if there are no finished runs, if a file is missing or corrupt, or if the settings of two runs of one
            benchmark differ in anything but the seed.
    """
    if not directory.is_dir() or not os.access(directory, os.R_OK | os.X_OK):
        raise UserError(f"{directory} is no readable folder; give the one after --out of `python -m benchmarks run`")
    folders = _run_folders(directory)
    if not folders:
        raise UserError(f"there are no finished runs in {directory}; {_hint(directory)}")
    comparison: Comparison = {}
    for folder in folders:
        run = read_run(folder)
        comparison.setdefault(run.benchmark, {}).setdefault(run.strategy, []).append(run)
    for benchmark, strategies in comparison.items():
        _check_settings([run for runs in strategies.values() for run in runs])
        names = [name for name in REFERENCES if name in strategies]
        names += sorted(name for name in strategies if name not in REFERENCES)
        comparison[benchmark] = {name: strategies[name] for name in names}
    return comparison
