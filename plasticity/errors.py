"""Errors that tell a user what to change."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user asked for: one clear line, no traceback needed to understand it."""


class TraceError(UserError):
    """A model whose hidden units cannot be found; the message names the module and the operation."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """Return the error for a name of which there is nothing: it says what is close, and what there is.

    Args:
        kind: What it would be the name of.
        name: The name.
        known: The names there are.
    """
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return UserError(f"unknown {kind} {name!r}{hint}: known are {', '.join(known)}")
