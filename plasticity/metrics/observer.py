"""Watches the strategy's own forward passes, and nothing else."""

from __future__ import annotations

from functools import partial

from plasticity.activity import Activity
from plasticity.groups import UnitGroups
from plasticity.metrics.tally import Tally
from plasticity.plugins.observing import ForwardObserver


class Observer(ForwardObserver[Activity]):
    """Watches one forward pass at a time, over a narrow and a wide stretch: a mini-batch and its epoch, for example.

    Args:
        features: How many rows of the penultimate representation a stretch keeps, at most.
        wide: Whether wide stretches are asked for.
        shared: A wide stretch keeps equally many of each narrow one, instead of those that came first.
        groups: The hidden units, if they are declared by hand.

    Attributes:
        wide: What the wide stretch saw in its closed narrow ones.
    """

    def __init__(self, features: int, *, wide: bool, shared: bool = False, groups: UnitGroups | None = None) -> None:
        super().__init__(partial(Activity, features=features), groups)
        self._features, self._adds_up, self._shared = features, wide, shared
        self.restart()

    def restart(self) -> None:
        """Begin a wide stretch, and with it a narrow one; forget what was seen."""
        self.end()
        self.wide = Tally(self._features, shared=self._shared)
        self._narrow = Tally(self._features)
        if self.activity is not None:
            self.activity.reset()

    def close(self) -> Tally:
        """End the narrow stretch and begin the next; return what it saw."""
        self._collect()
        narrow, self._narrow = self._narrow, Tally(self._features)
        if self._adds_up:
            self.wide.add(narrow.statistics, narrow.features())
        return narrow

    def before_renewal(self) -> None:
        """Keep what was seen of the model as it was."""
        self._collect()

    def _collect(self) -> None:
        if self.activity is not None:
            self._narrow.add(self.activity.statistics(), self.activity.features())
            self.activity.reset()
