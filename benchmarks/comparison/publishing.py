"""Published tables: a small file with the figures, their commands and environment, and the Markdown made of it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison.results import Comparison
from benchmarks.comparison.rows import comparison_rows
from benchmarks.comparison.wording import RATIOS, WORDING, plain_number
from plasticity.errors import UserError

FORMAT = 1
COLUMNS = (
    "late_learning_accuracy",
    "recovery",
    "forgetting",
    "dead_fraction",
    "effective_rank",
    "treated_units",
    "relative_time",
)
"""The measures of a published table."""

_DIGITS = 6  # of significance, more than any table shows


def published(comparison: Comparison, commands: Sequence[str]) -> dict[str, Any]:
    """Return what is published of finished runs on one benchmark.

    Args:
        comparison: The runs.
        commands: Command lines that make them, in order.

    Raises:
        UserError: If there are several benchmarks.
    """
    if len(comparison) != 1:
        raise UserError(f"a table is of one benchmark, and these are runs on {', '.join(comparison)}")
    ((benchmark, strategies),) = comparison.items()
    runs = [run for of_strategy in strategies.values() for run in of_strategy]
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "commands": list(commands),
        "settings": runs[0].settings,
        "environment": _common([run.environment for run in runs]),
        "seeds": sorted({run.seed for run in runs}),
        "rows": [
            {"strategy": row["strategy"], **{measure: _rounded(row[measure]) for measure in COLUMNS}}
            for row in comparison_rows(comparison)
        ],
    }


def _common(environments: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the entries of environments; where they differ, all that there are."""
    found: dict[str, Any] = {}
    for key in environments[0]:
        values = list(dict.fromkeys(str(environment.get(key)) for environment in environments))
        found[key] = values[0] if len(values) == 1 else values
    return found


def _rounded(interval: Any) -> dict[str, float | None]:
    return {key: None if value is None else float(f"{value:.{_DIGITS}g}") for key, value in interval.items()}


def markdown(content: dict[str, Any]) -> str:
    """Return a published table as Markdown, best late learning accuracy first, behind `naive` and `fresh`.

    Args:
        content: As `published` returned it.
    """
    rows = sorted(
        content["rows"],
        key=lambda row: (
            {"naive": 0, "fresh": 1}.get(row["strategy"], 2),
            -(row["late_learning_accuracy"]["mean"] or 0),
        ),
    )
    lines = ["| strategy | " + " | ".join(WORDING[measure].label for measure in COLUMNS) + " |"]
    lines.append("|---" * (1 + len(COLUMNS)) + "|")
    for row in rows:
        cells = [_cell(measure, row[measure]) for measure in COLUMNS]
        lines.append(f"| {_name(row['strategy'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _name(strategy: str) -> str:
    name, *options = strategy.split(":")
    return name + (f" ({', '.join(options)})" if options else "")


def _cell(measure: str, interval: dict[str, float | None]) -> str:
    mean, low, high = interval["mean"], interval["low"], interval["high"]
    digits = WORDING[measure].digits
    if mean is None:
        return "–"
    text = plain_number(mean, digits)
    if low is None or high is None or measure == "relative_time":
        return text
    if measure in RATIOS:
        return text if low == high else f"{text} [{plain_number(low, digits)}, {plain_number(high, digits)}]"
    return text if low == high else f"{text} ± {plain_number((high - low) / 2, digits)}"


def in_document(document: str, name: str, table: str) -> str:
    """Put a table in its place in a document.

    Args:
        document: Markdown, with a line `<!-- table NAME -->` before the place and `<!-- end -->` after it.
        name: The table's.
        table: Its Markdown.

    Raises:
        UserError: If there is no such place, or more than one.
    """
    place = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    found = len(place.findall(document))
    if found != 1:
        raise UserError(f"there should be one place '<!-- table {name} -->' … '<!-- end -->', not {found}")
    return place.sub(lambda match: f"{match[1]}\n{table}\n{match[2]}", document)


def publish(comparison: Comparison, commands: Sequence[str], output: Path, document: Path | None) -> None:
    """Write a table's file, and its Markdown into a document.

    Args:
        comparison: Runs on one benchmark.
        commands: Command lines that make them.
        output: The file; the table is called as it is, without .json.
        document: Where its place is.

    Raises:
        UserError: If there are several benchmarks, the document has no place for it, or a file cannot be written.
    """
    content = published(comparison, commands)
    try:
        if document is not None:
            text = in_document(document.read_text(encoding="utf-8"), output.stem, markdown(content))
            document.write_text(text, encoding="utf-8")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from error
