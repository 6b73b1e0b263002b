"""Published costs: one table for all that was measured together."""

from typing import Any

from benchmarks.publishing.documents import rounded, table


def content(costs: dict[str, Any]) -> dict[str, Any]:
    """Return what is published of the file that `cost --output` wrote.

    Args:
        costs: What it holds.
    """
    found: dict[str, Any] = rounded(costs)
    return found


def markdown(published: dict[str, Any]) -> str:
    """Return the table: medians of ratios within interleaved rounds, with 95% intervals.

    Args:
        published: What `content` returned.
    """
    rows = [
        [
            line["case"],
            line["what"],
            line["unit"],
            "{median:.2f} [{low:.2f}, {high:.2f}]".format(**line["ratio"]),
            str(line["ratio"]["rounds"]),
        ]
        for line in published["lines"]
    ]
    return table(["case", "what", "ratio of", "median", "rounds"], rows) + f"\n`{published['command']}`\n"
