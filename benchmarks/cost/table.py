"""The table of costs, as text and as JSON with the environment it was measured in."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from benchmarks.cost.timing import Ratio

FORMAT = 1
NOTE = (
    "Medians of the ratios within interleaved rounds, with 95% intervals: of the process's own time where one CPU "
    "thread computes it all, of the clock's time otherwise."
)


class Line(NamedTuple):
    """One figure.

    Attributes:
        section: "watching", "treating", "loading" or "processes".
        case: The network, or the stream.
        what: What was measured.
        unit: What the ratio is of.
        ratio: The figure.
    """

    section: str
    case: str
    what: str
    unit: str
    ratio: Ratio


def content(lines: Sequence[Line], environment: dict[str, str], command: str) -> dict[str, Any]:
    """Return the content of a file of costs.

    Args:
        lines: The figures.
        environment: Versions and machine.
        command: What made them.
    """
    return {
        "format": FORMAT,
        "command": command,
        "environment": environment,
        "lines": [{**line._asdict(), "ratio": line.ratio._asdict()} for line in lines],
    }


def text(lines: Sequence[Line]) -> str:
    """Return the table for people: medians of ratios within interleaved rounds, with 95% intervals."""
    width = max((len(line.what) for line in lines), default=0)
    found = []
    for (section, case, unit), group in groupby(lines, key=lambda line: (line.section, line.case, line.unit)):
        found.append(f"{section}: {case} ({unit})")
        for line in group:
            figure = line.ratio
            interval = f"[{figure.low:.3f}, {figure.high:.3f}]"
            found.append(f"  {line.what.ljust(width)}  {figure.median:7.3f}  {interval}  {figure.rounds} rounds")
        found.append("")
    return "\n".join([*found, NOTE, ""] if found else [])
