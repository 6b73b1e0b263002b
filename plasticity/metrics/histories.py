"""A logger that writes what plugins report of their treatments, and takes it out of memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from typing import Any

from avalanche.benchmarks import OnlineCLExperience
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger

from plasticity.metrics.json_lines import as_json, begun
from plasticity.plugins.parts import Parts
from plasticity.plugins.reporting import Reporting


class HistoryLogger(BaseLogger):
    """Writes the `history` of all plugins of this library after each experience, and empties it.

    One report a line, as JSON with the name of the plugin's class first:
    `{"plugin": "ReDoPlugin", "experience": 3, ...}`; numbers that are not finite are null. What the plugins do stays
    the same. Of an experience that an online stream shows in parts, reports are written when it is over, where the
    stream tells that. The logger can be pickled with its strategy, and goes on with the same file.

    Args:
        path: The file; folders above it are made.
        append: Add to a file that is already there, instead of emptying it.

    Raises:
        UserError: If the file cannot be written.
    """

    def __init__(self, path: str | PathLike[str], *, append: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Avalanche does not annotate it
        self.path = begun(path, append)
        self._parts = Parts()

    def log_single_metric(self, name: str, value: Any, x_plot: Any) -> None:
        """Nothing: metric values are for other loggers."""

    def after_training_exp(self, strategy: Any, metric_values: Sequence[MetricValue], **kwargs: Any) -> None:
        """Write what the plugins have reported."""
        experience = strategy.experience
        bounded = not isinstance(experience, OnlineCLExperience) or experience.access_task_boundaries
        if bounded and not self._parts.complete(experience):
            return
        plugins = [plugin for plugin in strategy.plugins if isinstance(plugin, Reporting)]
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            for plugin in plugins:
                for entry in plugin.take_history():
                    line = as_json({"plugin": type(plugin).__name__, **entry})
                    file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
