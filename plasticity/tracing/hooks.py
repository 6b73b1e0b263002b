"""Hooks of those who watch a model while it is used, and of nobody else's passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

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
        if watched():
            self.function(*args)

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _left_behind, ()


class HookSet:
    """The hooks of one watcher, which are put on the modules of a model, and taken off, again and again."""

    def __init__(self) -> None:
        self._planned: list[tuple[Callable[..., RemovableHandle], WatchingHook, dict[str, bool]]] = []
        self._handles: list[RemovableHandle] = []

    def before(self, module: nn.Module, function: Callable[..., None]) -> None:
        """Plan to call `function(module, args, kwargs)` before each call of a module."""
        self._planned.append((module.register_forward_pre_hook, _watching(function), {"with_kwargs": True}))

    def after(self, module: nn.Module, function: Callable[..., None], always_call: bool = False) -> None:
        """Plan to call `function(module, args, output)` after each call, with `always_call` also after a failed one."""
        self._planned.append((module.register_forward_hook, _watching(function), {"always_call": always_call}))

    def attach(self) -> None:
        """Put every hook on its module."""
        for register, hook, options in self._planned:
            self._handles.append(register(hook, **options))

    def detach(self) -> None:
        """Take every hook off again."""
        while self._handles:
            self._handles.pop().remove()


def _watching(function: Callable[..., None]) -> WatchingHook:
    return function if isinstance(function, WatchingHook) else WatchingHook(function)


def watched() -> bool:
    """Return whether this is outside of `unwatched`."""
    return not _unwatched.get()


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
