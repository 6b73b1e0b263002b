"""Published tables: a small file with the figures, their command and environment, and the Markdown made of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison.results import read_runs
from benchmarks.publishing import costs, runs, studies
from benchmarks.publishing.documents import in_document
from plasticity.errors import UserError

FORMAT = 1
_KINDS = {"benchmark": runs, "study": studies, "lines": costs}
"""What makes the Markdown of a file, by a key that only its kind has."""


def markdown(published: dict[str, Any]) -> str:
    """Return a published table as Markdown.

    Args:
        published: What the file holds.
    """
    kind = next(kind for key, kind in _KINDS.items() if key in published)
    return kind.markdown(published)


def publish(source: Path, commands: Sequence[str], output: Path, document: Path | None) -> None:
    """Write a table's file, and its Markdown into a document.

    Args:
        source: The folder of finished runs on one benchmark, the folder of a finished study, or a file of costs.
        commands: Command lines that make the runs, in order; a study and costs tell their own.
        output: The file; the table is called as it is, without .json.
        document: Where its place is.

    Raises:
        UserError: If the source is none of these, the document has no place for it, or a file cannot be written.
    """
    content = {"format": FORMAT, **_content(source, commands)}
    try:
        if document is not None:
            text = in_document(document.read_text(encoding="utf-8"), output.stem, markdown(content))
            document.write_text(text, encoding="utf-8")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from error


def _content(source: Path, commands: Sequence[str]) -> dict[str, Any]:
    written = source / "study.json" if source.is_dir() else source
    if source.is_dir() and not written.exists():
        if not commands:
            raise UserError("say with --command how the runs were made")
        return runs.content(read_runs(source), commands)
    if commands:
        raise UserError(f"{written} tells its own command; leave --command out")
    try:
        found = json.loads(written.read_text(encoding="utf-8"))
        return (studies if source.is_dir() else costs).content(found)
    except OSError as error:
        raise UserError(f"cannot read {written}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{written} was written by another version, or by something else: make it again") from None
