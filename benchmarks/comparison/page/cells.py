"""What stands in the report's tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.comparison.differences import Difference, paired_difference
from benchmarks.comparison.results import Run
from benchmarks.comparison.rows import MEASURES
from benchmarks.comparison.seeds import by_seed
from benchmarks.comparison.tables import SHOWN
from benchmarks.comparison.wording import WORDING, cell, plain_number

NOT_COMPARED = ("seconds", "treated_units")
"""Times are compared as ratios, and naive treats nothing."""


@dataclass(frozen=True)
class Bar:
    """A picture of an interval, in percent of the width of its column.

    Attributes:
        zero: where zero is.
        mean: where the estimate is.
        low: where its interval begins.
        width: how wide that is.
    """

    zero: float
    mean: float
    low: float
    width: float


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: the estimate.
        interval: its interval, empty where there is none.
        value: what the cell is sorted by; None where undefined.
        kind: "apart" or "same" where it is a difference that is or is not shown, else empty.
        bar: a picture of it.
    """

    text: str
    interval: str = ""
    value: float | None = None
    kind: str = ""
    bar: Bar | None = None


def known_measures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures that are defined for any strategy.

    Args:
        rows: the rows of one benchmark.

    Returns:
        Names of measures, in the order of `MEASURES`.
    """
    return [measure for measure in MEASURES if any(row[measure]["mean"] is not None for row in rows)]


def is_common(measure: str) -> bool:
    """Whether a measure is shown at once, and not on demand only.

    Args:
        measure: its name.

    Returns:
        True for what the text table shows.
    """
    return measure in SHOWN or measure == "dormant_fraction"


def measure_cells(row: Mapping[str, Any], measures: Sequence[str]) -> list[Cell]:
    """The numbers of one strategy.

    Args:
        row: its row.
        measures: which of them.

    Returns:
        A cell for each.
    """
    texts = [(measure, *cell(measure, row[measure])) for measure in measures]
    return [Cell(_minus(text), _minus(interval), row[measure]["mean"]) for measure, text, interval in texts]


def compared_measures(strategies: Mapping[str, Sequence[Run]]) -> list[str]:
    """The measures in which strategies may differ from naive, run by run.

    Args:
        strategies: the runs by strategy.

    Returns:
        Names of measures that are defined for naive and for another strategy; none without naive.
    """
    others = [runs for name, runs in strategies.items() if name != "naive"]
    return [
        measure
        for measure in MEASURES
        if measure not in NOT_COMPARED
        and all(measure in run.measures for runs in strategies.values() for run in runs)
        and by_seed(strategies.get("naive", []), measure)
        and any(by_seed(runs, measure) for runs in others)
    ]


def difference_cells(strategies: Mapping[str, Sequence[Run]], measure: str) -> dict[str, tuple[Difference, Cell]]:
    """How far each strategy is from naive in one measure, on the same seeds.

    Args:
        strategies: the runs by strategy.
        measure: a measure of single runs.

    Returns:
        The difference and its cell by strategy, naive left out; the bars of all cells have one scale.
    """
    naive = by_seed(strategies["naive"], measure)
    found = {
        name: paired_difference(by_seed(runs, measure), naive) for name, runs in strategies.items() if name != "naive"
    }
    ends = [0.0] + [value for each in found.values() for value in each.interval.values() if value is not None]
    low, high = min(ends), max(ends)

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2) if high > low else 50.0

    cells = {}
    for name, each in found.items():
        mean, *bounds = each.interval.values()
        if mean is None:
            cells[name] = (each, Cell("–"))
            continue
        ends = [mean if bound is None else bound for bound in bounds]
        bar = Bar(place(0), place(mean), place(ends[0]), round(place(ends[1]) - place(ends[0]), 2))
        interval = "" if bounds[0] is None else f"[{_signed(measure, bounds[0])}, {_signed(measure, bounds[1] or 0)}]"
        cells[name] = (each, Cell(_signed(measure, mean), interval, mean, "apart" if each.sign else "same", bar))
    return cells


def run_cells(run: Run, measures: Sequence[str]) -> list[Cell]:
    """The numbers of one run.

    Args:
        run: a finished run.
        measures: which of its measures.

    Returns:
        A cell for each.
    """
    values = [(measure, run.measures.get(measure)) for measure in measures]
    return [
        Cell("–") if value is None else Cell(_minus(plain_number(value, WORDING[measure].digits)), "", value)
        for measure, value in values
    ]


def facts(runs: Sequence[Run]) -> tuple[dict[str, str], list[str]]:
    """Settings and environment of runs: what they share, and in what they differ.

    Args:
        runs: all runs of a benchmark.

    Returns:
        Text by name for what is the same in all of them, and the names of what is not.
    """
    everything = [{**run.settings, **run.environment} for run in runs]
    keys = [key for key in dict.fromkeys(key for one in everything for key in one) if key != "seed"]
    shared = {key: text(everything[0].get(key)) for key in keys if len({text(one.get(key)) for one in everything}) == 1}
    return shared, [key for key in keys if key not in shared]


def text(value: Any) -> str:
    """A setting as people read it.

    Args:
        value: what the file holds.

    Returns:
        The text itself, other values as JSON, and "not recorded" for nothing.
    """
    if value is None:
        return "not recorded"
    return value if isinstance(value, str) else json.dumps(value)


def _signed(measure: str, value: float) -> str:
    written = plain_number(value, WORDING[measure].digits)
    return _minus(written if value <= 0 or not float(written) else f"+{written}")


def _minus(written: str) -> str:
    return written.replace("-", "−")
