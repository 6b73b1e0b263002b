"""Passes that nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

unwatching: ContextVar[bool] = ContextVar("unwatching", default=False)
"""Whether models run as if nobody watched them."""


@contextmanager
def unwatched() -> Iterator[None]:
    """Run a model in the block as if nobody watched it: what a watcher computes is no part of the model."""
    token = unwatching.set(True)
    try:
        yield
    finally:
        unwatching.reset(token)
