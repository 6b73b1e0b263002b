"""What a forward pass leaves behind: its output, and what it keeps in buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from plasticity.tracing.ledger import Ledger


def close(ledger: Ledger, model: nn.Module, output: Any) -> None:
    """Let what reaches the output, or is kept for the next forward pass, escape; note which layer writes the output."""
    for tensor in output_tensors(output, set()):
        value = ledger.value(tensor)
        if value is None:
            continue
        labels = value.labels()
        ledger.escape(labels, "it reaches the output of the model")
        writers = [number for number in torch.unique(ledger.call_of(labels)).tolist() if number >= 0]
        if writers and not ledger.outputs:
            ledger.outputs.append(ledger.calls[writers[0]].layer)
    for name, buffer in model.named_buffers():
        value = ledger.value(buffer)
        if value is not None:
            ledger.escape(value.labels(), f"it is kept in the buffer `{name}`")


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
