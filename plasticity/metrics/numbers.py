"""Measures as named numbers: computed on the device, and copied to the host at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from plasticity.finiteness import nonfinite_activity
from plasticity.measures.scalars import stack
from plasticity.metrics.measured import MEASURES, NON_FINITE, Evidence


def named_numbers(measures: Sequence[str], evidence: Evidence, name: Callable[[str], str]) -> dict[str, float]:
    """Compute measures.

    Args:
        measures: Names in `MEASURES`.
        evidence: What they look at.
        name: Makes the name of a number from that of its measure, with which it begins, and "_".

    Returns:
        Numbers by name, those of layers with theirs behind a slash; none of what is undefined. Where units are NaN or
        infinite, a warning says so, and their share is among the numbers, asked for or not.
    """
    found: dict[str, Tensor] = {}
    for measure in measures:
        title = name(measure)
        for layer, value in MEASURES[measure].compute(evidence).items():
            found[title if layer is None else f"{title}/{layer or '(model)'}"] = value
    if not found:
        return {}
    unasked = None
    if NON_FINITE not in measures and evidence.statistics:
        whole = MEASURES[NON_FINITE].compute(replace(evidence, per_layer=False))
        if whole:
            found[unasked := name(NON_FINITE)] = whole[None]
    numbers = dict(zip(found, stack(found.values()).tolist(), strict=True))  # the only copy to the host
    if any(number > 0 for title, number in numbers.items() if title.startswith(f"{NON_FINITE}_")):
        reason = nonfinite_activity(evidence.statistics)
        what = "they count as neither dead nor dormant. The network may have diverged"
        warnings.warn(f"{reason}: {what}", stacklevel=3)
    elif unasked is not None:
        del numbers[unasked]
    return numbers
