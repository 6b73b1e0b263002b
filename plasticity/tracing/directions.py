"""Which way the rows of a writing layer point when an activation sees them: as written, turned round, or not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plasticity.tracing.labels import Value
from plasticity.tracing.ledger import Ledger
from plasticity.tracing.operations import Operation

INCREASING = frozenset(
    "copy fill masked_fill where native_dropout _fused_dropout dropout clamp clamp_min clamp_max minimum maximum fmin "
    "fmax exp expm1 log log1p log2 log10 sqrt tanh sigmoid atan asinh sinh erf floor ceil round trunc nan_to_num relu "
    "hardtanh threshold clone to _to_copy".split()
)
"""Functions of one element that never fall where it rises; `copy` and `fill` are in place."""


def merged_directions(
    ledger: Ledger, values: Sequence[Value | None], factors: Sequence[int] | None = None
) -> Mapping[int, int]:
    """Put together the directions of several tensors, each turned by a factor; what they disagree on is not known.

    Args:
        ledger: The record of the trace.
        values: What the tensors depend on.
        factors: 1, -1, or 0 for not known, one a tensor; None: all are 1.

    Returns:
        By number of a writing call, -1 or 0; all others have 1.
    """
    turned = factors is not None and any(factor != 1 for factor in factors)
    if not turned and not any(value is not None and value.directions for value in values):
        return {}
    found: dict[int, int] = {}
    for value, factor in zip(values, factors or [1] * len(values), strict=True):
        owners = ledger.call_of(value.labels()).unique().tolist() if value is not None else []
        for call in owners:
            if call >= 0 and value is not None:
                direction = factor * value.directions.get(call, 1)
                found[call] = direction if found.get(call, direction) == direction else 0
    return {call: direction for call, direction in found.items() if direction != 1}


def factors(operation: Operation) -> list[int]:
    """Say of each tensor that an operation takes whether its result rises (1) or falls (-1) with it; 0: not known."""
    name = operation.name
    if name in INCREASING:
        return [1] * len(operation.inputs)
    if name not in ("neg", "add", "sub", "rsub", "mul", "div"):
        return [0] * len(operation.inputs)
    first, *others = operation.args[:2]
    other = others[0] if others else operation.kwargs.get("other")
    if name == "neg":
        found = [(first, -1)]
    elif name == "mul":
        found = [(first, _sign(other)), (other, _sign(first))]
    elif name == "div":
        found = [(first, _sign(other)), (other, 0)]
    else:
        scale = operation.argument("alpha")
        sign = _sign(1 if scale is None else scale)
        found = {
            "add": [(first, 1), (other, sign)],
            "sub": [(first, 1), (other, -sign)],
            "rsub": [(first, -sign), (other, 1)],
        }[name]
    of_inputs = [{factor for operand, factor in found if operand is tensor} for tensor in operation.inputs]
    return [signs.pop() if len(signs) == 1 else 0 for signs in of_inputs]


def _sign(factor: Any) -> int:
    """Return 1 for what is nowhere below 0, -1 for what is nowhere above, and 0 for anything else."""
    if isinstance(factor, Tensor):
        if factor.is_meta or factor.is_complex():
            return 0
        return 1 if bool(torch.all(factor >= 0)) else -1 if bool(torch.all(factor <= 0)) else 0
    if isinstance(factor, int | float):
        return 1 if factor >= 0 else -1
    return 0
