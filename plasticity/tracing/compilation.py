"""Functions compiled as `torch.compile` was asked to compile a network, but each as one whole graph."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from plasticity.tracing.preserve import Uncompiled

Steps = tuple[int, ...]
"""What a function notes while it runs, or is traced: numbers, in the order in which it notes them."""


class Compilation(NamedTuple):
    """How a network is compiled.

    Attributes:
        backend: What makes kernels of graphs.
        dynamic: Whether for sizes that vary; None: as they come.
        wrapped: Whether only calls of what `torch.compile` returned are compiled, and not those of the network itself.
    """

    backend: Callable[..., Any]
    dynamic: bool | None
    wrapped: bool

    def asked(self) -> bool:
        """Whether a call of the network that is going on is to be compiled."""
        return not self.wrapped or bool(torch._dynamo.eval_frame._is_in_optimized_module())


def compilation_of(model: nn.Module, called: Any) -> Compilation | None:
    """Return how a network is compiled by `model.compile()` or `torch.compile(model)`, as that returns it.

    Args:
        model: The network.
        called: What is called instead of its own call, or None.

    Returns:
        None if it is not, if it cannot be known, or if more was asked for than another function could be given.
    """
    if "torch._dynamo" not in sys.modules:  # without it nothing can have been compiled
        return None
    frames = torch._dynamo.eval_frame
    wrapped = isinstance(model, frames.OptimizedModule)
    context = model.dynamo_ctx if wrapped else _context_in(called)
    if not isinstance(context, frames.OptimizeContext) or not hasattr(frames, "_is_in_optimized_module"):
        return None
    backend: Any = context.callback
    wrappers = 0
    while hasattr(backend, "_torchdynamo_orig_backend"):
        backend, wrappers = backend._torchdynamo_orig_backend, wrappers + 1
    known = wrappers > 0 and callable(backend) and hasattr(context, "_dynamic")
    if not known or context.export or getattr(context, "_dynamic_shapes", None) is not None:
        return None
    return Compilation(backend, context._dynamic, wrapped)


def _context_in(function: Any) -> Any:
    """Return what a compiled function was compiled by."""
    for cell in getattr(function, "__closure__", None) or ():
        if isinstance(cell.cell_contents, torch._dynamo.eval_frame.OptimizeContext):
            return cell.cell_contents
    return None


class NotCompiledError(Exception):
    """A function cannot be compiled as one graph; it has not run, and nothing that it does was done."""


class WholeGraph:
    """A function that runs in whole graphs, each of which is checked before it is run.

    Args:
        function: What to compile, called as `function(note, args, kwargs)`. It is to call `note` with all its steps,
            once.
        compilation: How.
    """

    def __init__(self, function: Callable[..., Any], compilation: Compilation) -> None:
        self._gate = gate = _Gate()

        def note(*steps: int) -> None:
            gate.traced = steps

        note = torch.compiler.assume_constant_result(note)  # it is called by the tracer, not by the graph

        def whole(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_dynamo_compiling():  # under a mode in which PyTorch compiles nothing, for example
                raise NotCompiledError("PyTorch does not compile here")
            return function(note, args, kwargs)

        # With code of its own, the graphs of others do not count towards its limit, nor are they searched.
        alone = FunctionType(whole.__code__.replace(), whole.__globals__, whole.__name__, None, whole.__closure__)
        self._compiled = torch._dynamo.optimize(
            gate.before(compilation.backend), nopython=True, dynamic=compilation.dynamic
        )(alone)

    def __call__(self, args: Any, kwargs: Any, steps: Callable[[], Steps]) -> Any:
        """Call the function, while what is compiled runs uncompiled for the caller's sake, and nobody else's.

        Args:
            args: Its positional arguments.
            kwargs: Its other arguments.
            steps: Runs the function in plain Python, without a trace, and returns what it notes: called for every new
                graph, which must note the same.

        Raises:
            NotCompiledError: If it cannot be compiled, or its graph would note something else.
        """
        gate = self._gate
        gate.refused = False
        try:
            return self._try(args, kwargs)
        except NotCompiledError:
            if not gate.refused:
                raise
        gate.checked = steps()
        try:
            if gate.checked != gate.traced:
                raise NotCompiledError("the compiler does not see all that is called in it")
            return self._try(args, kwargs)
        finally:
            gate.checked = None

    def _try(self, args: Any, kwargs: Any) -> Any:
        with Uncompiled.lifted():
            try:
                return self._compiled(*args, **kwargs)
            except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
                raise NotCompiledError(reason[:200]) from error


class _Gate:
    """Says whether a backend may compile a graph: not before it has been checked.

    Attributes:
        traced: What the graph notes that was traced last.
        checked: What a graph must note to be compiled; None: all are refused. Nothing of these has run.
        refused: Whether one was.
    """

    def __init__(self) -> None:
        self.traced: Steps = ()
        self.checked: Steps | None = None
        self.refused = False

    def before(self, backend: Callable[..., Any]) -> Callable[..., Any]:
        """Return the backend behind the gate."""

        def compile_checked(graph: Any, inputs: Any) -> Any:
            if self.traced != self.checked:
                self.refused = True
                raise NotCompiledError("not yet checked")
            return backend(graph, inputs)

        for name in ("backend_ctx_ctor", "get_compiler_config", "reset"):
            if hasattr(backend, name):
                setattr(compile_checked, name, getattr(backend, name))
        return compile_checked
