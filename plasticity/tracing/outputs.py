"""What a forward pass leaves behind: its output, and what it keeps in buffers."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from plasticity.tracing.ledger import Ledger

_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has, which hold parameters, modules and hooks."""


def close(ledger: Ledger, model: nn.Module, output: Any) -> None:
    """Let what reaches the output, or is kept for the next forward pass, escape; note which layer writes the output."""
    for tensor in output_tensors(output, set()):
        for name in ledger.parameters.names_of(tensor):
            ledger.parameters.uses[name] = ledger.parameters.uses.get(name, 0) + 1
        value = ledger.value(tensor)
        if value is None:
            continue
        labels = value.labels()
        ledger.escape(labels, "it reaches the output of the model")
        writers = [number for number in torch.unique(ledger.call_of(labels)).tolist() if number >= 0]
        if writers and not ledger.outputs:
            ledger.outputs.append(ledger.calls[writers[-1]].layer)
    for path, module in model.named_modules():
        for name, kept in (*module._buffers.items(), *vars(module).items()):
            for tensor in _kept_tensors(name, kept):
                value = ledger.value(tensor)
                if value is not None:
                    ledger.escape(
                        value.labels(), f"it is kept in `{path}.{name}`" if path else f"it is kept in `{name}`"
                    )


def let_go(ledger: Ledger) -> None:
    """Let what outlives the forward pass escape: a later pass may see it.

    Attributes of the model have been looked at; what is left are caches in other objects and closures.
    """
    held = ledger.let_go()
    if not all(memory.expired() for memory, _ in held):
        gc.collect()  # in a cycle, perhaps
    for memory, values in held:
        if not memory.expired():
            for value in values:
                ledger.escape(value.labels(), "it is kept after the forward pass")


def _kept_tensors(name: str, kept: Any) -> list[Tensor]:
    """Return the tensors in an attribute of a module, if it is a tensor or a small container."""
    if name in _OWN or (
        not isinstance(kept, Tensor) and not (isinstance(kept, list | tuple | dict) and len(kept) < 100)
    ):
        return []
    return [leaf for leaf in tree_flatten(kept)[0] if isinstance(leaf, Tensor)]


def output_tensors(output: Any, seen: set[int]) -> list[Tensor]:
    """Return the tensors in nested containers and in the attributes of objects."""
    found: list[Tensor] = []
    for leaf in tree_flatten(output)[0]:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif id(leaf) not in seen:
            seen.add(id(leaf))
            if isinstance(leaf, dict):
                found.extend(output_tensors(list(leaf.values()), seen))
            elif isinstance(leaf, set | frozenset):
                found.extend(output_tensors(list(leaf), seen))
            elif not isinstance(leaf, type | nn.Module) and hasattr(leaf, "__dict__"):
                found.extend(output_tensors(list(vars(leaf).values()), seen))
    return found
