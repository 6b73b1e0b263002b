"""Published tables of runs: late learning accuracy, recovery and what they cost, a row for each strategy."""

from collections.abc import Sequence
from typing import Any

from benchmarks.comparison.results import Comparison
from benchmarks.comparison.rows import comparison_rows
from benchmarks.comparison.tables import SHOWN
from benchmarks.comparison.wording import RATIOS, WORDING, diverged, plain_number
from benchmarks.publishing.documents import rounded, table
from plasticity.errors import UserError


def content(comparison: Comparison, commands: Sequence[str]) -> dict[str, Any]:
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
        "benchmark": benchmark,
        "commands": list(commands),
        "settings": runs[0].settings,
        "environment": _common([run.environment for run in runs]),
        "seeds": sorted({run.seed for run in runs}),
        "rows": [
            {
                "strategy": row["strategy"],
                **{measure: rounded(row[measure]) for measure in SHOWN},
                **({"diverged": row["diverged"], "seeds": row["seeds"]} if "diverged" in row else {}),
            }
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


def markdown(published: dict[str, Any]) -> str:
    """Return a published table as Markdown, best late learning accuracy first, behind `naive` and `fresh`.

    Args:
        published: What `content` returned.
    """
    rows = sorted(
        published["rows"],
        key=lambda row: (
            {"naive": 0, "fresh": 1}.get(row["strategy"], 2),
            -(row["late_learning_accuracy"]["mean"] or 0),
        ),
    )
    return table(
        ["strategy", *(WORDING[measure].label for measure in SHOWN)],
        [
            [
                ", ".join(filter(None, [_name(row["strategy"]), diverged(row)])),
                *(_cell(measure, row[measure]) for measure in SHOWN),
            ]
            for row in rows
        ],
    )


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
