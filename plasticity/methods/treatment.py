"""What an intervention did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Treatment:
    """The report of one intervention.

    Attributes:
        method: Name of the method.
        samples: Number of probe samples on which units were judged.
        units: Numbers of the treated units, by group name.
        counts: What the method counts, by name, such as "dead" or "revived".
        output_shift: Mean distance that the outputs on the probe moved, over their mean length before.
        reasons: Why units were treated: numbers of units, by reason in words and by group name.
    """

    method: str
    samples: int
    units: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    output_shift: float = 0.0
    reasons: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, lists and strings; without the reasons, which `Treatment.reasons` has."""
        return {
            "method": self.method,
            "samples": self.samples,
            "units": {name: list(numbers) for name, numbers in self.units.items()},
            **self.counts,
            "output_shift": self.output_shift,
        }


def because(reasons: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, list[int]]]:
    """Return reasons as `Treatment` holds them, without those that no unit has.

    Args:
        reasons: By reason and group name, (n,) numbers of units.
    """
    found = {
        why: {name: numbers.tolist() for name, numbers in groups.items() if len(numbers)}
        for why, groups in reasons.items()
    }
    return {why: groups for why, groups in found.items() if groups}


def dead_on(samples: int) -> str:
    """Say that a unit is dead."""
    return f"dead: 0 on all {samples} training samples"
