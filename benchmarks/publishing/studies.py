"""Published studies: the table that people are shown, and the finding."""

from typing import Any

from benchmarks.publishing.documents import rounded, table
from benchmarks.studies.tables import Column, cell, marked

KEPT = ("study", "question", "source", "command", "full", "seeds", "runs", "environment", "finding")


def content(study: dict[str, Any]) -> dict[str, Any]:
    """Return what is published of a finished study.

    Args:
        study: What its study.json holds.
    """
    brief = "summary" in study
    return {
        **{name: study[name] for name in KEPT},
        "columns": study["summary_columns" if brief else "columns"],
        "rows": rounded(study["summary" if brief else "rows"]),
    }


def markdown(published: dict[str, Any]) -> str:
    """Return the table, what its columns mean, and the finding.

    Args:
        published: What `content` returned.
    """
    rows, columns, told = marked(published["rows"], [Column(**column) for column in published["columns"]])
    heads = [column.title.replace("\n", " ") for column in columns]
    cells = [[cell(row[column.key], column.digits) for column in columns] for row in rows]
    meanings = [f"*{head}*: {column.meaning}" for head, column in zip(heads, columns, strict=True) if column.meaning]
    notes = "".join(f"{note}\n\n" for note in [*(["; ".join(meanings) + "."] if meanings else []), *told])
    made = f"{published['runs']} runs, {published['seeds']} seeds: `{published['command']}`."
    return f"{table(heads, cells)}\n{notes}{published['finding']}\n\n{made}\n"
