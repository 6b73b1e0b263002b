"""Published costs: one table for all that was measured together."""

from typing import Any

from benchmarks.cost import LONG
from benchmarks.publishing.documents import rounded, table


def content(costs: dict[str, Any]) -> dict[str, Any]:
    """Return what is published of the file that `cost --output` wrote.

    Args:
        costs: What it holds.
    """
    found: dict[str, Any] = rounded(costs)
    return found


def markdown(published: dict[str, Any]) -> str:
    """Return the table: medians of ratios within interleaved rounds, with 95% intervals; of long runs a row each.

    Args:
        published: What `content` returned.
    """
    long = all(line["section"] == LONG for line in published["lines"])
    found = _of_long_runs(published["lines"]) if long else _of_ratios(published["lines"])
    return found + f"\n`{published['command']}`\n"


def _of_ratios(lines: list[dict[str, Any]]) -> str:
    rows = [
        [line["case"], line["what"], line["unit"], _cell(line["ratio"]), str(line["ratio"]["rounds"])] for line in lines
    ]
    return table(["case", "what", "ratio of", "median", "rounds"], rows)


def _of_long_runs(lines: list[dict[str, Any]]) -> str:
    units = list(dict.fromkeys(line["unit"] for line in lines))
    strategies = dict.fromkeys(line["what"] for line in lines)
    figures = {(line["what"], line["unit"]): line["ratio"] for line in lines}
    rows = [[name, *(_cell(figures[name, unit]) for unit in units)] for name in strategies]
    return table(["strategy", *units], rows)


def _cell(ratio: dict[str, float]) -> str:
    median, low, high = (f"{ratio[key]:.2f}".replace("-0.00", "0.00") for key in ("median", "low", "high"))
    return median if low == median == high else f"{median} [{low}, {high}]"
