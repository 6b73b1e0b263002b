"""Comparison rows as text for people, as CSV and as JSON."""

import csv
import io
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from benchmarks.comparison.rows import MEASURES
from benchmarks.comparison.wording import DIVERGED, NOTE, WORDING, cell, diverged

SHOWN = (
    "late_learning_accuracy",
    "recovery",
    "forgetting",
    "dead_fraction",
    "effective_rank",
    "treated_units",
    "relative_time",
)
"""What fits into 100 columns, and is published; the other measures are in the CSV, JSON and HTML outputs."""

WIDTH = 100
"""Columns of the text."""

NAME_WIDTH = 24
"""Longer names take several lines."""

Rows = list[dict[str, Any]]
Cell = list[str]
"""The lines of one cell."""


def _header() -> list[Cell]:
    return [["", "strategy"], ["", "seeds"], *(WORDING[measure].header.split("\n") for measure in SHOWN)]


def _broken(name: str) -> Cell:
    """A line for each part of a combination and each option, and more for a part that is too long."""
    lines = []
    for piece in re.findall(r"[^+:]+[+:]?|[+:]", name):
        while len(piece) > NAME_WIDTH and "-" in piece[:NAME_WIDTH]:
            end = piece.rindex("-", 0, NAME_WIDTH) + 1
            lines.append(piece[:end])
            piece = piece[end:]
        lines.append(piece)
    return lines


def _cells(row: dict[str, Any]) -> list[Cell]:
    name = [*_broken(row["strategy"]), *filter(None, [diverged(row)])]
    numbers = [list(cell(measure, row[measure])) for measure in SHOWN]
    for lines in numbers:
        lines[1] = re.sub(r"(?<![\d±])0\.", ".", lines[1])  # [.70, .86]: 100 columns are not many
    return [name, [str(row["seeds"])], *numbers]


def _lines(cells: list[Cell], widths: list[int]) -> list[str]:
    lines = []
    for index in range(max(len(content) for content in cells)):
        texts = [content[index] if index < len(content) else "" for content in cells]
        numbers = [text.rjust(width) for text, width in zip(texts[1:], widths[1:], strict=True)]
        lines.append(f"{texts[0].ljust(widths[0])} {'  '.join(numbers)}".rstrip())
    return [line for line in lines if line]


def _styled_lines(rows: Rows, said: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """The lines of the tables and what is said below them, each with the style that a terminal gives it."""
    for benchmark, group in groupby(rows, key=lambda row: row["benchmark"]):
        table = [_header(), *(_cells(row) for row in group)]
        widths = [max(len(line) for cells in table for line in cells[column]) for column in range(len(table[0]))]
        head, *body = (_lines(cells, widths) for cells in table)
        yield "bold", benchmark
        yield from (("", line) for line in head)
        yield "", "-" * (sum(widths) + 2 * len(widths) - 3)
        for first, *more in body:
            yield "bold", first
            yield from (("dim", line) for line in more)
        yield "", ""
        for paragraph in said.get(benchmark, ()):
            yield from (("", line) for line in textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False))
            yield "", ""
    yield "dim", NOTE
    if any(map(diverged, rows)) and not said:  # the words say it, too
        yield "dim", DIVERGED
    yield "dim", "More measures: --format csv, json or html."


def plain_table(rows: Rows, said: Mapping[str, Sequence[str]] | None = None) -> str:
    """Aligned text without colour, readable at 100 columns.

    Args:
        rows: the rows of a comparison.
        said: paragraphs below the table of each benchmark.

    Returns:
        A table for each benchmark and a note on how to read them.
    """
    return "".join(line + "\n" for _, line in _styled_lines(rows, said or {}))


def terminal_table(rows: Rows, said: Mapping[str, Sequence[str]] | None = None) -> str:
    """The same text with a terminal's emphasis.

    Args:
        rows: the rows of a comparison.
        said: paragraphs below the table of each benchmark.

    Returns:
        Text with escape codes.
    """
    from rich.console import Console
    from rich.text import Text

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True)
    for style, line in _styled_lines(rows, said or {}):
        console.print(Text(line, style=style), soft_wrap=True)
    return stream.getvalue()


def csv_text(rows: Rows) -> str:
    """One line per benchmark and strategy.

    Args:
        rows: the rows of a comparison.

    Returns:
        CSV with columns benchmark, strategy, seeds and MEASURE_mean, MEASURE_low, MEASURE_high for every measure, in
        full precision; a field is empty where undefined. Where runs have diverged, a last column says how many.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    keys = ("mean", "low", "high")
    names = [f"{measure}_{key}" for measure in MEASURES for key in keys]
    told = any(map(diverged, rows))
    writer.writerow(["benchmark", "strategy", "seeds", *names, *(["diverged"] if told else [])])
    for row in rows:
        numbers = [row[measure][key] for measure in MEASURES for key in keys]
        last = [row.get("diverged", 0)] if told else []
        values = ["" if number is None else number for number in numbers]
        writer.writerow([row["benchmark"], row["strategy"], row["seeds"], *values, *last])
    return stream.getvalue()


def json_text(rows: Rows) -> str:
    """The rows as they are.

    Args:
        rows: the rows of a comparison.

    Returns:
        A JSON list, null where undefined, never NaN.
    """
    return json.dumps(rows, indent=2, allow_nan=False) + "\n"
