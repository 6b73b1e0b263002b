"""The table of costs, as text and as JSON with the environment it was measured in."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.cost.timing import Ratio

FORMAT = 1
NOTE = (
    "Medians of the ratios within interleaved rounds, with 95% intervals: of the process's own time where one CPU "
    "thread computes it all, of the clock's time otherwise."
)

WIDTH = 60
"""Of the names of what is measured; the longest of ours has a letter less."""


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


def rows(lines: Iterable[Line]) -> Iterator[str]:
    """Give the rows of the table for people, each as soon as its figure is there.

    Args:
        lines: The figures; those of one case and unit in a row come under one title.
    """
    before = None
    for section, case, what, unit, figure in lines:
        title = f"{section}: {case} ({unit})"
        if title != before:
            yield title if before is None else f"\n{title}"
            before = title
        interval = f"[{figure.low:.3f}, {figure.high:.3f}]"
        rounds = f"{figure.rounds} round{'s' if figure.rounds > 1 else ''}"
        yield f"  {what.ljust(WIDTH)}  {figure.median:7.3f}  {interval}  {rounds}"
    if before is not None:
        yield f"\n{NOTE}"
