"""Help for Avalanche's own checkpoints, which fail with the optimizers of today's PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def picklable_optimizers() -> Iterator[None]:
    """Let a strategy with an optimizer of PyTorch's be saved with Avalanche's `save_checkpoint`, inside the block.

        with picklable_optimizers():
            save_checkpoint(strategy, "checkpoint.pkl")

    PyTorch takes the names of its modules of optimizers, such as `torch.optim.adam`, off `torch.optim`, so that dill
    does not find a class like `torch.optim.adam.Adam` by its name and fails in saving it by value. Inside the block the
    names are there. Loading needs no help. The file is a pickle, which runs code when it is loaded: load only what you
    wrote yourself.
    """
    prefix = "torch.optim."
    added = []
    for name, module in list(sys.modules.items()):
        key = name.removeprefix(prefix)
        if name.startswith(prefix) and "." not in key and module is not None and key not in vars(torch.optim):
            setattr(torch.optim, key, module)
            added.append(key)
    try:
        yield
    finally:
        for key in added:
            delattr(torch.optim, key)
