"""Results as a run leaves them, made by hand for the tests of studies."""

from collections.abc import Callable
from typing import Any

from benchmarks.studies.study import Asked, Finished, StudyRun


def result(
    *,
    accuracy: float = 0.5,
    dead: float = 0.0,
    learned: list[float] | None = None,
    sizes: dict[str, int] | None = None,
    treatments: list[dict[str, Any]] | None = None,
    parameters: int = 1000,
    seconds: float = 1.0,
) -> dict[str, Any]:
    """What tables of studies read out of result.json."""
    layers = {name: {"size": size} for name, size in (sizes or {"a": 10}).items()}
    return {
        "measures": {
            "average_accuracy": accuracy,
            "late_learning_accuracy": accuracy,
            "dead_fraction": dead,
            "effective_rank": None,
        },
        "learning_accuracy": learned or [accuracy],
        "units": [{"layers": layers}],
        "treatments": treatments or [],
        "parameters": parameters,
        "processor": {"seconds": seconds},
    }


def finished(runs: list[StudyRun], make: Callable[[StudyRun], dict[str, Any]]) -> Finished:
    """Return results of all runs of a study, made from their settings."""
    return Finished({run.folder: make(run) for run in runs})


ASKED = Asked(seeds=3)
