"""What an intervention did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Treatment:
    """The report of one intervention.

    Attributes:
        method: Name of the method.
        samples: Number of probe samples on which units were judged.
        units: Numbers of the treated units, by group name.
        counts: What the method counts, by name, such as "dead" or "revived".
        output_shift: Mean distance that the outputs on the probe moved, over their mean length before.
    """

    method: str
    samples: int
    units: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    output_shift: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, lists and strings."""
        return {
            "method": self.method,
            "samples": self.samples,
            "units": {name: list(numbers) for name, numbers in self.units.items()},
            **self.counts,
            "output_shift": self.output_shift,
        }
