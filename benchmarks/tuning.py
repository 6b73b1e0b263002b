"""Tuning: every method has the same number of configurations tried on the same seeds, which a comparison leaves out."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison.wording import DIVERGED, diverged_runs
from benchmarks.settings import FORMAT, RunSettings
from plasticity.errors import UserError
from strategies import parse

FIRST_SEED = 1000
"""Tuning takes seeds from here on; `run` takes those from 0 on."""

MEASURE = "late_learning_accuracy"


def configurations(names: Sequence[str]) -> dict[str, list[str]]:
    """Return what tuning tries for each strategy, as names with options.

    Args:
        names: Strategies without options; where several are combined by `+`, every combination is tried.

    Raises:
        UserError: If a name is unknown, or says its options already.
    """
    found = {}
    for name in names:
        tried = [""]
        for strategy in parse(name):
            if ":" in name:
                raise UserError(f"{name!r} is one configuration; tuning is told the strategy alone")
            tried = [
                f"{first}+{strategy.name}".lstrip("+") + (f":{options}" if options else "")
                for first in tried
                for options in strategy.configurations
            ]
        found[name] = tried
    return found


def choose(tried: dict[str, list[str]], runs: Sequence[RunSettings], out: Path) -> dict[str, Any]:
    """Find the best configuration of each strategy, by late learning accuracy; the first of them at a tie.

    Args:
        tried: As `configurations` returned it.
        runs: Finished runs of all of them, on the same seeds.
        out: Where they are.

    Returns:
        The content of tuned.json: "strategies" has for each name its "best" configuration and all "scores". Where runs
        have diverged, "diverged" says how many of which configuration.
    """
    scores: dict[str, list[float]] = {}
    diverged: Counter[str] = Counter()
    for run in runs:
        result = json.loads((out / run.folder / "result.json").read_text())
        scores.setdefault(run.strategy, []).append(float(result["measures"][MEASURE]))
        diverged[run.strategy] += "diverged" in result
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    config = runs[0].config()
    return {
        "format": FORMAT,
        "benchmark": runs[0].benchmark,
        "measure": MEASURE,
        "seeds": sorted({run.seed for run in runs}),
        "settings": config["settings"],
        "environment": config["environment"],
        "strategies": {
            name: {
                "best": max(options, key=lambda option: means[option]),
                "scores": {option: means[option] for option in options},
                **({"diverged": found} if (found := {o: diverged[o] for o in options if diverged[o]}) else {}),
            }
            for name, options in tried.items()
        },
    }


def lines(tuned: Mapping[str, Any]) -> list[str]:
    """Write for a person what tuning found.

    Args:
        tuned: As `choose` returned it.
    """
    written, told = [], False
    for entry in tuned["strategies"].values():
        for name, score in entry["scores"].items():
            mark = diverged_runs(entry.get("diverged", {}).get(name, 0), len(tuned["seeds"]))
            best = "*" if name == entry["best"] else " "
            written.append(f"{score:.3f} {best} {', '.join(filter(None, [name, mark]))}")
            told = told or bool(mark)
    head = f"{MEASURE.replace('_', ' ')}; * is the best configuration of its strategy"
    return [head, *written, *([DIVERGED] if told else [])]


def read_tuned(path: Path, benchmark: str) -> dict[str, str]:
    """Return the best configuration of each strategy that tuning has seen.

    Args:
        path: What `tune` wrote.
        benchmark: On which it has to have been.

    Raises:
        UserError: If there is no such file, or it is another one.
    """
    try:
        content = json.loads(path.read_text())
        found = {str(name): str(entry["best"]) for name, entry in content["strategies"].items()}
        of = content["benchmark"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} was not written by `python -m benchmarks tune`") from None
    if of != benchmark:
        raise UserError(f"{path} was tuned on {of}, and {benchmark} is to run")
    return found


def tuned_name(name: str, best: dict[str, str]) -> str:
    """Return a strategy with the options that tuning found; a combination that was not tuned as one, part by part."""
    return best.get(name) or "+".join(best.get(part, part) for part in name.split("+"))
