"""Hooks of those who watch a model while it is used, and of nobody else's passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_unwatched: ContextVar[bool] = ContextVar("unwatched", default=False)


class WatchingHook:
    """A hook that looks at forward passes and changes nothing.

    A copy of the model, such as a frozen teacher, does not take it along, and it does not see passes in `unwatched`.

    Args:
        function: What to call.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> None:
        """Look, unless nobody is to."""
        if not _unwatched.get():
            self.function(*args)

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _left_behind, ()


@contextmanager
def unwatched() -> Iterator[None]:
    """Run a model in the block as if nobody watched it: what a watcher computes is no part of the model."""
    token = _unwatched.set(True)
    try:
        yield
    finally:
        _unwatched.reset(token)


def _nothing(*args: Any) -> None:
    """What a hook is in a copied model."""


def _left_behind() -> Callable[..., None]:
    return _nothing
