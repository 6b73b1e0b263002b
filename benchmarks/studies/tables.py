"""The table of a study as text for people, as CSV and as JSON, and numbers as they stand in its sentences."""

import csv
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.comparison.statistics import Interval
from benchmarks.comparison.wording import DIVERGED, NOTE, diverged_runs

WIDTH = 110
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        key: Of the entries in the rows.
        title: At the head of the column, on one or more lines.
        meaning: What it is, in one sentence; "": the title says it.
        digits: Decimals of numbers.
    """

    key: str
    title: str
    meaning: str = ""
    digits: int = 3


def number(value: float, digits: int, sign: bool = False) -> str:
    """Write a number as people do: never "-0.0", a true minus sign, and a plus where asked for."""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def level(value: float) -> str:
    """Write a setting: 0.001 and 30, but 1e-5."""
    return f"{value:g}"


def written(interval: Interval, digits: int = 3, sign: bool = False) -> str:
    """Write an estimate and its interval in a sentence: "+0.12 [0.05, 0.19]"."""
    mean, low, high = interval["mean"], interval["low"], interval["high"]
    if mean is None:
        return "undefined"
    if low is None or high is None:
        return number(mean, digits, sign)
    return f"{number(mean, digits, sign)} [{number(low, digits, sign)}, {number(high, digits, sign)}]"


def cell(value: Any, digits: int) -> str:
    """Write an entry of a table."""
    if isinstance(value, Mapping):
        mean, low, high = value["mean"], value["low"], value["high"]
        if mean is None:
            return "–"
        if low is None or high is None:
            return number(mean, digits)
        return f"{number(mean, digits)} ±{number((high - low) / 2, digits)}"
    if value is None:
        return "–"
    return value if isinstance(value, str) else level(value) if isinstance(value, float) else str(value)


def marked(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[list[Row], list[Column], list[str]]:
    """Add to a table what is to be said of runs that have diverged; where none has, it stays as it is.

    Args:
        rows: As in `benchmarks.studies.study.Report`.
        columns: Of the table.

    Returns:
        The rows; the columns, with a last one without a title; and what it means, a sentence or none.
    """
    if not any("diverged" in row for row in rows):
        return list(rows), list(columns), []
    words = [diverged_runs(row.get("diverged", 0), row.get("runs", 0)) for row in rows]
    said = [{**row, "diverged": text} for row, text in zip(rows, words, strict=True)]
    return said, [*columns, Column("diverged", "")], [DIVERGED]


def plain_text(question: str, rows: Sequence[Row], columns: Sequence[Column], finding: str) -> str:
    """Write a study for a person: its question, its table and its finding."""
    rows, columns, told = marked(rows, columns)
    heads = [column.title.split("\n") for column in columns]
    depth = max(map(len, heads))
    lines = [[*[""] * (depth - len(head)), *head] for head in heads]
    body = [[cell(row[column.key], column.digits) for column in columns] for row in rows]
    widths = [max(len(text) for text in (*head, *(line[index] for line in body))) for index, head in enumerate(lines)]
    words = [all(isinstance(row[column.key], str) for row in rows) for column in columns]

    def joined(texts: Sequence[str]) -> str:
        parts = [t.ljust(w) if left else t.rjust(w) for t, w, left in zip(texts, widths, words, strict=True)]
        return "  ".join(parts).rstrip()

    table = [joined([head[line] for head in lines]) for line in range(depth)]
    table += ["-" * (sum(widths) + 2 * len(widths) - 2), *map(joined, body)]
    meanings = [f"{column.title.replace(chr(10), ' ')}: {column.meaning}" for column in columns if column.meaning]
    paragraphs = [question, "", *table, "", *meanings, NOTE, *told, "", *textwrap.wrap(finding, WIDTH)]
    return "\n".join(paragraphs) + "\n"


def csv_text(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Write the rows in full precision; an interval takes the columns KEY_mean, KEY_low and KEY_high.

    Where runs have diverged, a last column says how many.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    intervals = {c.key for c in columns if any(isinstance(row[c.key], Mapping) for row in rows)}
    parts = ("mean", "low", "high")
    names = [[f"{c.key}_{part}" for part in parts] if c.key in intervals else [c.key] for c in columns]
    told = any("diverged" in row for row in rows)
    writer.writerow([*(name for some in names for name in some), *(["diverged"] if told else [])])
    for row in rows:
        values: list[Any] = []
        for column in columns:
            value = row[column.key]
            if column.key in intervals:
                values += [None] * 3 if value is None else [value[part] for part in parts]
            else:
                values.append(value)
        last = [row.get("diverged", 0)] if told else []
        writer.writerow([*("" if value is None else value for value in values), *last])
    return stream.getvalue()


def json_text(
    head: Mapping[str, Any],
    rows: Sequence[Row],
    finding: str,
    columns: Sequence[Column],
    summary: Sequence[Row] | None = None,
    summary_columns: Sequence[Column] = (),
) -> str:
    """Write everything that is known, null where undefined."""
    content = {**head, "finding": finding, "columns": [asdict(column) for column in columns], "rows": list(rows)}
    if summary is not None:
        content["summary_columns"] = [asdict(column) for column in summary_columns]
        content["summary"] = list(summary)
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
