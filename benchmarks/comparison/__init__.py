"""Comparison of finished benchmark runs: measures, intervals over seeds, tables and a report."""

import sys
from pathlib import Path

from benchmarks.comparison.measures import run_measures

FORMATS = ("table", "csv", "json", "html")

__all__ = ["FORMATS", "compare", "run_measures"]


def compare(directory: Path, format: str = "table", output: Path | None = None) -> str:
    """Compares the strategies of finished runs.

    Args:
        directory: the results folder, with BENCHMARK/STRATEGY/seed-K folders in it.
        format: "table" (text for people, with what the seeds can tell apart in words, and with emphasis where standard
            output is a terminal), "csv", "json" or "html"
            (one self-contained page).
        output: a file to write instead of printing; it appears whole or not at all.

    Returns:
        The document, ending in a newline. It is for the caller to print where there is no `output`.

    Raises:
        UserError: for an unknown format, a folder without finished runs, corrupt or incomparable runs, and an output
            that cannot be written.
    """
    from benchmarks.comparison import tables
    from benchmarks.comparison.results import read_runs
    from benchmarks.comparison.rows import comparison_rows
    from benchmarks.writing import write_whole
    from plasticity.errors import UserError

    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; known formats: {', '.join(FORMATS)}")
    comparison = read_runs(Path(directory))
    rows = comparison_rows(comparison)
    if format == "html":
        from benchmarks.comparison.report import html_page

        text = html_page(comparison, rows)
    elif format == "csv":
        text = tables.csv_text(rows)
    elif format == "json":
        text = tables.json_text(rows)
    else:
        from benchmarks.comparison.summary import paragraphs

        said = {benchmark: paragraphs(strategies) for benchmark, strategies in comparison.items()}
        coloured = output is None and sys.stdout.isatty() and "utf" in (sys.stdout.encoding or "").lower()
        text = tables.terminal_table(rows, said) if coloured else tables.plain_table(rows, said)
    if output is not None:
        write_whole(output, text)
    return text
