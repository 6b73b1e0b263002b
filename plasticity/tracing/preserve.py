"""Leave a model, and the random state, as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Run a block that must not leave a trace in a model's buffers and train or eval mode, or in the random state.

    Batch normalisation runs on its stored statistics in the block, so that a single sample is enough.

    Args:
        model: The network that the block runs.
    """
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    stilled = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    modes = [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            for module in stilled:
                module.training = False
            yield
        finally:
            for each, training in modes:
                each.training = training
            with torch.no_grad():
                for owner, name, buffer, content in buffers:
                    owner._buffers[name] = buffer
                    if buffer is not None and content is not None:
                        if buffer.shape != content.shape:  # as observers of quantisation have at first
                            buffer.resize_(content.shape)
                        buffer.copy_(content)
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class Uncompiled:
    """Runs what `torch.compile` made of a model as plain Python, from `enter` to `leave` or in a block.

    Several may be in force at a time, and end in any order; one that nobody holds any more has ended.
    """

    _in_force = 0
    _before: Any = None

    def __init__(self) -> None:
        self._entered = False

    def enter(self) -> None:
        """Begin, unless it has begun."""
        # Without the module nothing can have been compiled, and the import takes a second.
        if not self._entered and "torch._dynamo" in sys.modules:
            self._entered = True
            if Uncompiled._in_force == 0:
                variable = _stance_variable()
                if variable is None:
                    Uncompiled._before = torch.compiler.set_stance("force_eager")
                else:
                    attributes, eager = variable
                    Uncompiled._before, attributes["_stance"] = attributes["_stance"], eager
            Uncompiled._in_force += 1

    @staticmethod
    def alone() -> bool:
        """Whether one is in force, and without it all would be compiled as usual."""
        if Uncompiled._in_force != 1:
            return False
        otherwise = getattr(Uncompiled._before, "prev", Uncompiled._before)
        return bool(otherwise == _usual_stance())

    @staticmethod
    @contextmanager
    def lifted() -> Iterator[None]:
        """Compile as usual in a block, while one is in force alone."""
        variable = _stance_variable()
        if variable is None:
            with torch.compiler.set_stance("default"):
                yield
            return
        attributes, eager = variable
        attributes["_stance"] = Uncompiled._before
        try:
            yield
        finally:
            attributes["_stance"] = eager

    def leave(self) -> None:
        """End, if it has begun."""
        if self._entered:
            self._entered = False
            Uncompiled._in_force -= 1
            if Uncompiled._in_force == 0:
                variable = _stance_variable()
                if variable is None:
                    Uncompiled._before.__exit__(None, None, None)
                else:
                    variable[0]["_stance"] = Uncompiled._before

    def __del__(self) -> None:
        self.leave()

    def __reduce__(self) -> tuple[type[Uncompiled], tuple[()]]:
        return Uncompiled, ()  # a copy has not begun

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *exception: object) -> None:
        self.leave()


@cache
def _usual_stance() -> Any:
    return torch._dynamo.eval_frame.DynamoStance()


@cache
def _stance_variable() -> tuple[dict[str, Any], Any] | None:
    """Find where `torch.compiler.set_stance` keeps the stance, and what "force_eager" is there.

    To set it there takes a tenth of the time, which counts in every watched step. It is no public name, so what the
    public function does to it is looked at first; None, if that is anything else.
    """
    from torch._dynamo import eval_frame

    attributes = vars(eval_frame)
    before = attributes.get("_stance")
    public = torch.compiler.set_stance("force_eager")
    during = attributes.get("_stance")
    public.__exit__(None, None, None)
    found = during is not before and during == public.stance and attributes.get("_stance") is before
    return (attributes, during) if found and before is not None else None


def compile_anew() -> None:
    """Let `torch.compile` look at all models again: of hooks that come or go on inner modules it does not know."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
