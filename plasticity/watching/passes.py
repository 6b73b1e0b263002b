"""Where a forward pass of a watched model is: which of its modules runs, and what that has called so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from plasticity.tracing.functions import ACTIVATION_MODULES, WATCHED_FUNCTIONS
from plasticity.watching.calls import Around


class _FunctionCalls(TorchFunctionMode):
    """Hands over what every watched function returns."""

    def __init__(self, called: Callable[[Any], None]) -> None:
        super().__init__()
        self.called = called

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in WATCHED_FUNCTIONS:
            self.called(result)
        return result


class Pass:
    """The forward pass that is going on, if there is one.

    Args:
        function_called: Called as `function_called(module, call, result)` after each watched function, with the
            qualified name of the module that called it, and how many it had called before.

    Attributes:
        modules: Qualified names of the running modules, the model ("") first; empty outside of a pass.
    """

    def __init__(self, function_called: Callable[[str, int, Any], None]) -> None:
        self.modules: list[str] = []
        self._function_called = function_called
        self._calls: dict[str, int] = {}
        self._mode: _FunctionCalls | None = None

    def enter(self) -> None:
        """Begin a pass, and catch watched functions in it; one around it ends."""
        self.leave()
        self._calls = {}
        self.modules = [""]
        self._mode = _FunctionCalls(self._called)
        self._mode.__enter__()  # type: ignore[no-untyped-call]  # torch does not annotate it

    def leave(self) -> None:
        """End the pass, if one is going on."""
        self.modules = []
        if self._mode is not None:
            mode, self._mode = self._mode, None
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch does not annotate it

    def around(self, name: str) -> Around:
        """Return what to do around each call of a module, so that function calls in it are known as its own."""

        def around(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            modules = self.modules  # of this pass: another one may begin meanwhile
            modules.append(name)
            try:
                return call(*args, **kwargs)
            finally:
                modules.pop()

        return around

    def _called(self, result: Any) -> None:
        name = self.modules[-1]
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        self._function_called(name, call, result)


def is_plain(module: nn.Module) -> bool:
    """Return whether a module is one of PyTorch's own, and no subclass."""
    return type(module).__module__.startswith("torch.nn.modules.")


def callers(modules: dict[str, nn.Module]) -> list[str]:
    """Name the modules whose function calls must be told apart; PyTorch's own layers call no watched function."""
    found = []
    for name, module in modules.items():
        plain = is_plain(module) and type(module) not in ACTIVATION_MODULES
        if name and not (plain and next(module.children(), None) is None):
            found.append(name)
    return found
