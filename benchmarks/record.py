"""What a run has measured so far, experience by experience."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

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
    # Rows of the matrix and entries of the units as they are saved.
    _rows: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)
    _lines: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain values; what was returned before is not gone through again."""
        for row in self.matrix[len(self._rows) :]:  # of later experiences nothing has been asked yet
            known = row[: len(self._rows) + 1]
            self._rows.append(
                torch.tensor([math.nan if value is None else value for value in known], dtype=torch.float64)
            )
        self._lines += [json.dumps(entry) for entry in self.units[len(self._lines) :]]
        return {
            "untrained": self.untrained,
            "before_learning": self.before_learning,
            "online": self.online,
            "matrix": torch.cat(self._rows) if self._rows else torch.zeros(0, dtype=torch.float64),
            "units": list(self._lines),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.untrained, self.before_learning = list(state["untrained"]), list(state["before_learning"])
        self.online, self._lines = list(state["online"]), list(state["units"])
        self.units = [json.loads(line) for line in self._lines]
        self._rows = list(state["matrix"].split(list(range(1, len(self.units) + 1))))
        self.matrix = [
            [None if value != value else value for value in row.tolist()] + [None] * (len(self.untrained) - len(row))
            for row in self._rows
        ]
