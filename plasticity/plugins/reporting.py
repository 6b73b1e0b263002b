"""The reports of what plugins did, and how they are taken out of memory in long streams."""

from __future__ import annotations

from typing import Any


class Reporting:
    """What plugins share that report what they do.

    Attributes:
        history: The reports that nobody has taken yet, as plain dictionaries.
        reported: How many reports there were, with those that were taken.
    """

    history: list[dict[str, Any]]
    reported: int

    def report(self, entry: dict[str, Any]) -> None:
        """Add a report."""
        self.history.append(entry)
        self.reported += 1

    def take_history(self) -> list[dict[str, Any]]:
        """Return `history`, and empty it; to be called between two experiences.

        A history grows with the stream. What a plugin does is the same whether it was taken or not.
        """
        taken, self.history = self.history, []
        return taken
