"""What the metrics see of an evaluation."""

from __future__ import annotations

from typing import Any

from plasticity.groups import UnitGroups
from plasticity.metrics.observer import Observer
from plasticity.metrics.probing import FixedProbe
from plasticity.metrics.settings import Settings
from plasticity.metrics.tally import Seen, Tally


class EvaluationWatch:
    """Watches an evaluation over narrow stretches and a wide one, its experiences and all of them together.

    Args:
        settings: What to measure, and when; where that is never in evaluation, there is nothing to do.
        groups: The hidden units, if they are declared by hand.
        probe: The samples on which to look at units and representations, if they are fixed.
    """

    def __init__(self, settings: Settings, groups: UnitGroups | None = None, probe: FixedProbe | None = None) -> None:
        self._probe = probe if settings.observed else None
        self._observer: Observer | None = None
        if settings.in_evaluation and settings.observed and probe is None:
            self._observer = Observer(settings.rows, wide=settings.stream, shared=True, groups=groups)
        self._on_probe: Tally | None = None

    def restart(self) -> None:
        """Begin an evaluation; forget what was seen."""
        self._on_probe = None
        if self._observer is not None:
            self._observer.restart()

    def before_forward(self, strategy: Any) -> None:
        """Watch the forward pass that follows."""
        if self._observer is not None:
            self._observer.begin(strategy)

    def after_forward(self) -> None:
        """Stop watching."""
        if self._observer is not None:
            self._observer.rest()

    def close(self, strategy: Any, asked: bool) -> Seen:
        """End the narrow stretch and begin the next; return what it showed.

        Args:
            strategy: The strategy.
            asked: Whether anybody wants to know; if not, there is no look at a probe.
        """
        if self._observer is not None:
            return Seen(self._observer.close())
        return Seen(self._probed(strategy) if asked else None)

    def wide(self, strategy: Any) -> Seen:
        """Return what the evaluation showed so far."""
        return Seen(self._probed(strategy) if self._observer is None else self._observer.wide)

    def _probed(self, strategy: Any) -> Tally | None:
        """Look at the probe once in an evaluation: the network stays the same."""
        if self._on_probe is None and self._probe is not None and strategy.experience is not None:
            self._on_probe = self._probe.look(strategy)
        return self._on_probe
