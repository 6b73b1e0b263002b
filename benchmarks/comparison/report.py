"""The comparison as one self-contained page."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.comparison.live import Live, Unfinished
from benchmarks.comparison.page import cells, series
from benchmarks.comparison.page.activity import activity
from benchmarks.comparison.page.library import own_script, plotting_library
from benchmarks.comparison.page.points import scatter
from benchmarks.comparison.results import REFERENCES, Comparison, Run
from benchmarks.comparison.seeds import by_seed
from benchmarks.comparison.summary import summary
from benchmarks.comparison.wording import WORDING, diverged

FIRST_SHOWN = 6
"""How many strategies the plots show before a reader chooses."""

Rows = Sequence[Mapping[str, Any]]


def html_page(comparison: Comparison, rows: Rows, live: Live | None = None) -> str:
    """Renders the report.

    Args:
        comparison: the runs by benchmark and strategy.
        rows: their rows.
        live: where runs are going on, what they have told so far; the page then loads itself again and again.

    Returns:
        An HTML document that needs no other file and no network.
    """
    sections = [
        _section(name, strategies, [row for row in rows if row["benchmark"] == name])
        for name, strategies in comparison.items()
    ]
    data: dict[str, Any] = {
        "references": list(REFERENCES),
        "chosen": list(dict.fromkeys(name for strategies in comparison.values() for name in first_shown(strategies))),
        "sections": [section["data"] for section in sections],
    }
    going = _unfinished(live) if live else []
    data["sections"] += [group["data"] for group in going]
    if live:
        data["live"] = {"seconds": live.seconds}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breaking"] = _breaking
    scripts = [plotting_library(), own_script()]
    style = (Path(__file__).parent / "page" / "style.css").read_text(encoding="utf-8")
    return environment.get_template("template.html").render(
        sections=sections,
        strategies=list(dict.fromkeys(name for strategies in comparison.values() for name in strategies)),
        measures=WORDING,
        runs=sum(len(runs) for strategies in comparison.values() for runs in strategies.values()),
        data=Markup(json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(_hash(script) for script in scripts),
        style=Markup(style),
        label=series.label,
        first=FIRST_SHOWN,
        live=live,
        going=going,
    )


def first_shown(strategies: Mapping[str, Sequence[Run]]) -> list[str]:
    """Which strategies the plots show at first.

    Args:
        strategies: the runs of one benchmark by strategy.

    Returns:
        The references, and of the others those with the highest late learning accuracy, in the order given: that is
        where to begin to look, and no ranking.
    """
    references = [name for name in REFERENCES if name in strategies]
    chosen = {*references, *_by_late_learning(strategies)[: FIRST_SHOWN - len(references)]}
    return [name for name in strategies if name in chosen]


def _by_late_learning(strategies: Mapping[str, Sequence[Run]]) -> list[str]:
    late = {name: np.mean(list(by_seed(runs, "late_learning_accuracy").values())) for name, runs in strategies.items()}
    return sorted((name for name in late if name not in REFERENCES), key=lambda name: -late[name])


def _section(benchmark: str, strategies: Mapping[str, Sequence[Run]], rows: Rows) -> dict[str, Any]:
    runs = [run for each in strategies.values() for run in each]
    plots = _plots(strategies, rows)
    return {
        "name": benchmark,
        "experiences": len(runs[0].units),
        "scored": len(runs[0].scored),
        "samples": max(entry["samples"] for run in runs for entry in run.units),
        "summary": summary(strategies),
        "strategies": list(strategies),
        **_numbers(rows),
        **_differences(strategies),
        **_runs(runs),
        "accuracies": [key for key in plots["curves"] if key in series.ACCURACIES],
        "others": [key for key in plots["curves"] if key.strip("~") not in series.ACCURACIES],
        "smooth": series.smoothing(len(runs[0].scored)),
        "shares": series.SHARES,
        "sides": [next(iter(strategies)), [*_by_late_learning(strategies), *strategies][0]],
        "data": {"name": benchmark, "strategies": list(strategies), **plots},
    }


def _numbers(rows: Rows) -> dict[str, Any]:
    measures = cells.known_measures(rows)
    return {
        "measures": {measure: cells.is_common(measure) for measure in measures},
        "rows": [(row["strategy"], diverged(row), row["seeds"], cells.measure_cells(row, measures)) for row in rows],
    }


def _differences(strategies: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    compared = {measure: cells.is_common(measure) for measure in cells.compared_measures(strategies)}
    columns = [cells.difference_cells(strategies, measure) for measure in compared]
    rows = {name: [column[name] for column in columns] for name in strategies if columns and name != "naive"}
    return {
        "compared": compared,
        "differences": [
            (name, max(difference.seeds for difference, _ in row), [cell for _, cell in row])
            for name, row in rows.items()
        ],
        "comparisons": sum(each.interval["low"] is not None for row in rows.values() for each, _ in row),
    }


def _runs(runs: Sequence[Run]) -> dict[str, Any]:
    shared, differing = cells.facts(runs)
    measures = [measure for measure in WORDING if any(run.measures.get(measure) is not None for run in runs)]
    told = [{**run.settings, **run.environment} for run in runs]
    return {
        "shared": shared,
        "differing": differing,
        "run_measures": measures,
        "runs": [
            (run, [cells.text(facts.get(key)) for key in differing], cells.run_cells(run, measures))
            for run, facts in zip(runs, told, strict=True)
        ],
    }


def _plots(strategies: Mapping[str, Sequence[Run]], rows: Rows) -> dict[str, Any]:
    return {
        "grids": series.grids(next(iter(strategies.values()))[0]),
        "curves": series.curves(strategies),
        "layers": {name: series.layers(runs) for name, runs in strategies.items()},
        "matrices": {name: series.matrix(runs) for name, runs in strategies.items()},
        "scatter": scatter(rows),
        "activity": {name: found for name, runs in strategies.items() if (found := activity(runs)) is not None},
    }


def _unfinished(live: Live) -> list[dict[str, Any]]:
    groups: dict[str, list[Unfinished]] = {}
    for run in live.unfinished:
        groups.setdefault(run.benchmark, []).append(run)
    return [
        {
            "name": benchmark,
            "runs": runs,
            "data": {
                "name": benchmark,
                "strategies": [],
                "experiences": max(run.experiences for run in runs),
                "unfinished": [
                    {
                        "strategy": run.strategy,
                        "seed": run.seed,
                        **{
                            key: [getattr(run, key).get(index) for index in range(run.experiences)]
                            for key in ("learning_accuracy", "dead_fraction")
                        },
                    }
                    for run in runs
                ],
            },
        }
        for benchmark, runs in groups.items()
    ]


def _breaking(name: str) -> Markup:
    """A name that may take several lines, broken between its parts."""
    return Markup("<wbr>").join(re.findall(r"[^+:=_]*[+:=_]|[^+:=_]+", name))


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
