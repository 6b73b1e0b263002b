"""The comparison as one self-contained page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.comparison import figures
from benchmarks.comparison.results import Comparison, Run
from benchmarks.comparison.rows import MEASURES
from benchmarks.comparison.summary import summary
from benchmarks.comparison.wording import NOTE, WORDING, cell


def html_page(comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> str:
    """Renders the report.

    Args:
        comparison: the runs by benchmark and strategy.
        rows: their rows.

    Returns:
        An HTML document that needs no other file, no network and no script.
    """
    styles = figures.styles(list(dict.fromkeys(name for strategies in comparison.values() for name in strategies)))
    sections = []
    for benchmark, strategies in comparison.items():
        curves, window = figures.learning_curves(strategies, styles)
        every_run = [run for runs in strategies.values() for run in runs]
        sections.append(
            {
                "name": benchmark,
                "experiences": len(every_run[0].units),
                "samples": max(run.units[-1]["samples"] for run in every_run),
                "summary": summary(strategies),
                "rows": [_cells(row) for row in rows if row["benchmark"] == benchmark],
                "curves": curves,
                "window": window,
                "dead": {name: figures.dead_units(runs, styles[name]) for name, runs in strategies.items()},
                "matrices": {name: figures.accuracy_matrix(runs) for name, runs in strategies.items()},
                "seeds": _seeds(strategies),
                "settings": {key: _text(value) for key, value in every_run[0].settings.items() if key != "seed"},
                "environment": _environment(every_run),
            }
        )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("template.html").render(
        sections=sections,
        styles=styles,
        measures={measure: WORDING[measure] for measure in MEASURES},
        note=NOTE,
        runs=sum(len(runs) for strategies in comparison.values() for runs in strategies.values()),
    )


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    cells = [[text.replace("-", "−") for text in cell(measure, row[measure])] for measure in MEASURES]
    return {"strategy": row["strategy"], "seeds": row["seeds"], "cells": cells}


def _seeds(strategies: Mapping[str, Sequence[Run]]) -> dict[str, list[str]]:
    """Which strategies have which seeds."""
    same: dict[str, list[str]] = {}
    for name, runs in strategies.items():
        seeds = [run.seed for run in runs]
        unbroken = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds)))
        text = f"{seeds[0]}–{seeds[-1]}" if unbroken else ", ".join(str(seed) for seed in seeds)
        same.setdefault(text, []).append(name)
    return same


def _environment(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What the runs ran on: all values of each entry, for machines and versions may differ between runs."""
    keys = dict.fromkeys(key for run in runs for key in run.environment)
    return {key: sorted({_text(run.environment.get(key, "not recorded")) for run in runs}) for key in keys}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
