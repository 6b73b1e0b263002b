"""What plugins of a run share that note a number now and then while it trains."""

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from benchmarks.judging import finite
from benchmarks.observing import Stopwatch


class NotingPlugin(SupervisedPlugin[Any]):
    """Notes numbers, which stay on the device until `take` asks for their mean.

    Args:
        stopwatch: The run's, which stands still meanwhile.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.stopwatch = stopwatch
        self._noted: list[Tensor] = []

    def note(self, value: Tensor) -> None:
        """Note a 0-dim number."""
        self._noted.append(value)

    def take(self) -> float | None:
        """Return the mean since the last call; None if nothing was noted or a number is not finite."""
        noted, self._noted = self._noted, []
        return finite(torch.stack(noted).mean()) if noted else None

    def state_dict(self) -> dict[str, Any]:
        """Return what was noted since the last `take`."""
        return {"noted": torch.stack(self._noted) if self._noted else torch.zeros(0)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._noted = list(state["noted"].unbind())
