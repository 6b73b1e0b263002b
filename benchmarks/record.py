"""What a run has measured so far: in a file to which each experience adds a line, so that long runs take no memory."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.resuming.marks import Marks

NAME = "record.jsonl"
"""Of the file, beside that of the metric values; it goes when the result is written."""

Accuracies = list[float | None]


class Record:
    """The measurements of a run, for its result.

    Args:
        path: The file.
        append: Leave what is in it.

    Attributes:
        experiences: Of how many experiences it has the measurements.
        untrained: Accuracy of the untrained network on each experience; None where it cannot know anything of it.
        before_learning: Accuracy on the experience that comes just before learning it, likewise; empty until it is
            known.
    """

    def __init__(self, path: Path, append: bool = False):
        self.path = path
        self.experiences = 0
        self.untrained: Accuracies = []
        self.before_learning: Accuracies = []
        self._marks = Marks()
        path.open("a" if append else "w").close()

    def add(
        self,
        online: float | None,
        tested: Mapping[int, float],
        units: Mapping[str, Any],
        treatments: Sequence[tuple[int, dict[str, Any]]],
    ) -> None:
        """Add the measurements of the experience that was just learned.

        Args:
            online: Accuracy on its training mini-batches.
            tested: Accuracy on experiences of the stream, by number.
            units: What the hidden units are like.
            treatments: What was done to the network, each with the number of the plugin that did it.
        """
        (before,) = self.before_learning
        line = {
            "before_learning": before,
            "online": online,
            "tested": list(tested.items()),
            "units": units,
            "treatments": treatments,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.experiences += 1
        self.before_learning = []

    def result(self, further: Sequence[tuple[int, dict[str, Any]]] = ()) -> dict[str, Any]:
        """Return everything, as result.json has it.

        Treatments are in the order of the plugins, and those of each in the order in which they were given.

        Args:
            further: Treatments that are not in the file, each with the number of its plugin.
        """
        matrix: list[Accuracies] = []
        online: Accuracies = []
        before: Accuracies = []
        units: list[dict[str, Any]] = []
        treatments: list[tuple[int, dict[str, Any]]] = []
        for line in self._lines():
            row: Accuracies = [None] * len(self.untrained)
            for number, accuracy in line["tested"]:
                row[number] = accuracy
            matrix.append(row)
            online.append(line["online"])
            before.append(line["before_learning"])
            units.append(line["units"])
            treatments += line["treatments"]
        return {
            "accuracy_matrix": matrix,
            "learning_accuracy": [row[index] for index, row in enumerate(matrix)],
            "online_accuracy": online,
            "untrained_accuracy": self.untrained,
            "accuracy_before_learning": before,
            "units": units,
            "treatments": [entry for _, entry in sorted([*treatments, *further], key=lambda each: each[0])],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the file, and what is not in it, as plain values."""
        return {
            "file": self._marks.mark(self.path),
            "experiences": self.experiences,
            "untrained": self.untrained,
            "before_learning": self.before_learning,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` returned; the file is cut off there.

        Raises:
            ChangedError: If what is before that place is not what it was.
        """
        self._marks.go_back(self.path, state["file"])
        self.experiences = int(state["experiences"])
        self.untrained, self.before_learning = list(state["untrained"]), list(state["before_learning"])

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
