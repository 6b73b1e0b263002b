"""How long the gradient is while a run trains, looked at now and then."""

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from benchmarks.judging import finite
from benchmarks.observing import Stopwatch
from plasticity import measures
from plasticity.groups import unwrap

EVERY = 10
"""Training iterations between two looks."""


class GradientNormPlugin(SupervisedPlugin[Any]):
    """Notes the L2 norm of every tenth gradient as the optimizer is about to use it; it comes after all other plugins.

    The device is asked once, by `take`.

    Args:
        stopwatch: The run's, which stands still meanwhile.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.stopwatch = stopwatch
        self._norms: list[Tensor] = []  # 0-dim, left on the device
        self._iterations = 0

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Look, if it is time."""
        if self._iterations % EVERY == 0:
            with self.stopwatch.paused():
                self._norms.append(measures.gradient_norm(unwrap(strategy.model)))
        self._iterations += 1

    def take(self) -> float | None:
        """Return the mean over the looks since the last call; None if there were none or one is not finite."""
        norms, self._norms, self._iterations = self._norms, [], 0
        return finite(torch.stack(norms).mean()) if norms else None

    def state_dict(self) -> dict[str, Any]:
        """Return the norms since the last `take`."""
        norms = torch.stack(self._norms) if self._norms else torch.zeros(0)
        return {"norms": norms, "iterations": self._iterations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._norms, self._iterations = list(state["norms"].unbind()), int(state["iterations"])
