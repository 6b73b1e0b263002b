"""How long the gradient is while a run trains, looked at now and then."""

from collections.abc import Mapping
from typing import Any

from benchmarks.noting import NotingPlugin
from benchmarks.observing import Stopwatch
from plasticity import measures
from plasticity.groups import unwrap

EVERY = 10
"""Training iterations between two looks."""


class GradientNormPlugin(NotingPlugin):
    """Notes the L2 norm of every tenth gradient as the optimizer is about to use it; it comes after all other plugins.

    Args:
        stopwatch: The run's, which stands still meanwhile.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        super().__init__(stopwatch)
        self._iterations = 0

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Look, if it is time."""
        if self._iterations % EVERY == 0:
            with self.stopwatch.paused():
                self.note(measures.gradient_norm(unwrap(strategy.model)))
        self._iterations += 1

    def take(self) -> float | None:
        """Return the mean over the looks since the last call, and look again at once."""
        self._iterations = 0
        return super().take()

    def state_dict(self) -> dict[str, Any]:
        """Return the norms since the last `take`."""
        return {**super().state_dict(), "iterations": self._iterations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self._iterations = int(state["iterations"])
