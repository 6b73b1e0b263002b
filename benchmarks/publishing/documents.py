"""The files that are published, and the places of their tables in documents."""

import re
from typing import Any

from plasticity.errors import UserError

DIGITS = 6
"""Of significance, more than any table shows."""


def rounded(value: Any) -> Any:
    """Round all numbers in nested lists and objects to `DIGITS` digits of significance."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    ruler = "|---" * len(heads) + "|"
    return "\n".join([_line(heads), ruler, *map(_line, rows)]) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def in_document(document: str, name: str, markdown: str) -> str:
    """Put a table in its place in a document.

    Args:
        document: Markdown, with a line `<!-- table NAME -->` before the place and `<!-- end -->` after it.
        name: The table's.
        markdown: Its Markdown.

    Raises:
        UserError: If there is no such place, or more than one.
    """
    place = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    found = len(place.findall(document))
    if found != 1:
        raise UserError(f"there should be one place '<!-- table {name} -->' … '<!-- end -->', not {found}")
    return place.sub(lambda match: f"{match[1]}\n{markdown}\n{match[2]}", document)
