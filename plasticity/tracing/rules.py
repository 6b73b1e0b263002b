"""All rules: how each kind of operation moves units from its inputs to its outputs.

A rule gets the ledger, the call and its results, and records what the results depend on. Whatever has no rule is taken
to mix everything: its inputs' units escape.
"""

from __future__ import annotations

from typing import Any

import torch

from plasticity.tracing import movement, weights
from plasticity.tracing import reductions as reductions
from plasticity.tracing.operations import RULES, Operation, Rule, mix, tensors
from plasticity.tracing.weights import read

__all__ = ["COPIES", "MOVES", "WRITERS", "Operation", "Rule", "mix", "read", "rule_for", "tensors"]

MOVES: Rule = movement.move
COPIES: Rule = movement.copy
WRITERS: tuple[Rule, ...] = (weights.convolution, weights.matrix_product)


def rule_for(function: Any, name: str) -> Rule:
    """Return the rule for an operator; operators that are not PyTorch's own have none, whatever their name."""
    if function.namespace != "aten":
        return mix
    found = RULES.get(name)
    if found is None and torch.Tag.pointwise in function.tags:
        found = movement.pointwise
    return found or mix
