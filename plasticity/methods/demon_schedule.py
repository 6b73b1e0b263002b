"""Strengths that follow a curve over a number of steps; plain numbers, known to the host."""

from __future__ import annotations

import math


def one_cycle(
    step: int, steps: int, peak: float, *, rise: float = 0.3, start_divisor: float = 25.0, end_divisor: float = 1e4
) -> float:
    """Return the value of a one-cycle curve: from low to the peak, then down to almost nothing, both by half a cosine.

    The same curve as `torch.optim.lr_scheduler.OneCycleLR` over as many steps.

    Args:
        step: Which step, from 0.
        steps: Length of the curve; after it the value is 0.
        peak: Largest value.
        rise: Share of the steps on which the value rises, in (0, 1).
        start_divisor: The curve begins at `peak / start_divisor`.
        end_divisor: It ends at its beginning divided by this.
    """
    if step < 0 or step >= steps or peak == 0:
        return 0.0
    low = peak / start_divisor
    top, last = rise * steps - 1, steps - 1
    if step <= top:
        return _cosine(low, peak, step / top if top > 0 else 1.0)
    top = max(top, 0.0)  # too few steps to rise: the curve begins at its peak
    return _cosine(peak, low / end_divisor, (step - top) / (last - top) if last > top else 0.0)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
