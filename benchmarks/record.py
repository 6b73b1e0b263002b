"""What a run has measured so far, experience by experience."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Accuracies = list[float | None]


@dataclass
class Record:
    """The measurements of a run, for its result.

    Attributes:
        untrained: Accuracy of the untrained network on each experience; None where it cannot know anything of it.
        before_learning: Accuracy on each experience just before learning it, likewise.
        online: Accuracy on the training mini-batches of each experience.
        matrix: For each experience learned, the accuracy on each experience of the stream; None where not asked for.
        units: What the hidden units were like after each experience.
    """

    untrained: Accuracies = field(default_factory=list)
    before_learning: Accuracies = field(default_factory=list)
    online: Accuracies = field(default_factory=list)
    matrix: list[Accuracies] = field(default_factory=list)
    units: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain values."""
        nan = float("nan")
        known = len(self.matrix)  # of later experiences nothing has been asked yet
        matrix = [[nan if value is None else value for value in row[:known]] for row in self.matrix]
        return {
            "untrained": self.untrained,
            "before_learning": self.before_learning,
            "online": self.online,
            "matrix": torch.tensor(matrix, dtype=torch.float64),
            "units": self.units,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.untrained, self.before_learning = list(state["untrained"]), list(state["before_learning"])
        self.online, self.units = list(state["online"]), list(state["units"])
        rest: Accuracies = [None] * (len(self.untrained) - len(state["matrix"]))
        rows = state["matrix"].tolist()
        self.matrix = [[None if value != value else value for value in row] + rest for row in rows]
