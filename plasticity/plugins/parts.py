"""When an experience is over that an online stream shows in parts."""

from __future__ import annotations

from typing import Any

from avalanche.benchmarks import OnlineCLExperience


class Parts:
    """Tells when an experience is over, of which an online stream may show a few samples at a time.

    Attributes:
        seen: How many parts of the present experience there were.
    """

    def __init__(self) -> None:
        self.seen = 0

    def complete(self, experience: Any) -> bool:
        """Say, after training on an experience or the next part of one, whether that was all of it.

        Avalanche's own mark for the last part is missing where the parts are all of one size, so they are counted. An
        online stream that does not tell boundaries never completes one.
        """
        if not isinstance(experience, OnlineCLExperience):
            return True
        if not experience.access_task_boundaries:
            return False
        self.seen = 1 if experience.is_first_subexp else self.seen + 1
        return bool(self.seen == experience.sub_stream_length)
