"""What was seen of a network in several stretches of watching, put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from plasticity.metrics.measured import Values
from plasticity.watching.unit_gradients import GradientStatistics
from plasticity.watching.unit_statistics import UnitStatistics


class Tally:
    """Statistics of units and rows of features over several stretches; nothing is read back to the host.

    Args:
        limit: How many rows of features to keep, at most.
        shared: Keep equally many rows of each stretch, instead of those that came first.

    Attributes:
        statistics: By group name. Of a group that changed its size, only what was seen since.
    """

    def __init__(self, limit: int, *, shared: bool = False) -> None:
        self._limit, self._shared = limit, shared
        self._rows: list[Tensor] = []
        self.statistics: dict[str, UnitStatistics] = {}

    def add(self, statistics: Mapping[str, UnitStatistics], features: Tensor | None) -> None:
        """Add a stretch.

        Args:
            statistics: What the units did, by group name.
            features: (rows, width) the penultimate representation, or None. Rows of another width are dropped for it.
        """
        for name, seen in statistics.items():
            before = self.statistics.get(name)
            self.statistics[name] = seen if before is None else _together(before, seen)
        if features is None:
            return
        rows = [part.to(features) for part in self._rows if part.shape[1] == features.shape[1]]
        if self._shared:
            share = max(1, self._limit // (len(rows) + 1))
            self._rows = [part[:share] for part in (*rows, features)][: self._limit]
        else:
            room = max(0, self._limit - sum(len(part) for part in rows))
            self._rows = [*rows, features[:room]]

    def features(self) -> Tensor | None:
        """Return the kept rows of the penultimate representation, (rows, width), or None if there are none."""
        rows = torch.cat(self._rows) if self._rows else None
        return rows if rows is not None and len(rows) else None


class Seen(NamedTuple):
    """What one stretch showed.

    Attributes:
        units: Units and features, if they were looked at.
        gradients: Norm of the gradients, by layer; None is the whole network.
        steps: The sample plasticity of its steps, under None.
        unit_gradients: What was seen of the gradients of units, by group name.
    """

    units: Tally | None = None
    gradients: Values = {}
    steps: Values = {}
    unit_gradients: Mapping[str, GradientStatistics] = {}


def _together(first: UnitStatistics, second: UnitStatistics) -> UnitStatistics:
    if second.count == 0:
        return first
    if first.count == 0 or first.fired.shape != second.fired.shape:
        return second
    count = first.count + second.count
    return UnitStatistics(
        first.fired + second.fired,
        count,
        (first.mean * first.count + second.mean * second.count) / count,
        (first.mean_abs * first.count + second.mean_abs * second.count) / count,
    )
