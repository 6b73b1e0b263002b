"""Watches the strategy's own forward passes, or its gradients, and nothing else."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from plasticity.groups import UnitGroups
from plasticity.metrics.tally import Tally
from plasticity.plugins.observing import Follower, ForwardObserver
from plasticity.watching.activity import Activity
from plasticity.watching.unit_gradients import GradientStatistics, UnitGradients


class Observer(ForwardObserver[Activity]):
    """Watches one forward pass at a time, over a narrow and a wide stretch: a mini-batch and its epoch, for example.

    Args:
        features: How many rows of the penultimate representation a stretch keeps, at most.
        wide: Whether wide stretches are asked for.
        shared: A wide stretch keeps equally many of each narrow one, instead of those that came first.
        groups: The hidden units, if they are declared by hand.
        every: Watch the first of so many passes of a wide stretch.

    Attributes:
        wide: What the wide stretch saw in its closed narrow ones.
    """

    def __init__(
        self,
        features: int,
        *,
        wide: bool,
        shared: bool = False,
        groups: UnitGroups | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(partial(Activity, features=features, compiled=every == 1), groups, every=every)
        self._features, self._adds_up, self._shared = features, wide, shared
        self.restart()

    def restart(self) -> None:
        """Begin a wide stretch, and with it a narrow one; forget what was seen."""
        self.end()
        self.restart_count()
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


class GradientObserver(Follower[UnitGradients]):
    """Looks at gradients before each update, over a narrow and a wide stretch: an iteration and its epoch.

    Args:
        groups: The hidden units, if they are declared by hand.

    Attributes:
        wide: What the wide stretch saw in its closed narrow ones, by group name.
    """

    def __init__(self, groups: UnitGroups | None = None) -> None:
        super().__init__(UnitGradients, groups)
        self._warned = False
        self.restart()

    def restart(self) -> None:
        """Begin a wide stretch, and with it a narrow one; forget what was seen."""
        self.wide: dict[str, GradientStatistics] = {}
        self._narrow: dict[str, GradientStatistics] = {}
        if self._made is not None:
            self._made.reset()

    def look(self, strategy: Any) -> None:
        """Add the gradients of the strategy's model as they are now; find its units, unless they are known."""
        gradients = self.follow(strategy)
        if gradients.unreadable and not self._warned:
            self._warned = True
            reasons = "; ".join(f"{name}: {reason}" for name, reason in gradients.unreadable.items())
            warnings.warn(f"NotLearningUnits leaves out units whose gradients cannot be read ({reasons})", stacklevel=2)
        gradients.look()

    def close(self) -> dict[str, GradientStatistics]:
        """End the narrow stretch and begin the next; return what it saw."""
        self._collect()
        narrow, self._narrow = self._narrow, {}
        self.wide = _together(self.wide, narrow)
        return narrow

    def before_renewal(self) -> None:
        """Keep what was seen of the model as it was."""
        self._collect()

    def _collect(self) -> None:
        if self._made is not None:
            self._narrow = _together(self._narrow, self._made.statistics())
            self._made.reset()


def _together(
    first: dict[str, GradientStatistics], second: dict[str, GradientStatistics]
) -> dict[str, GradientStatistics]:
    return first | {name: first[name].together(seen) if name in first else seen for name, seen in second.items()}
