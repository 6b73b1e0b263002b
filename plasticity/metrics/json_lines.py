"""A logger that writes every metric value as one line of JSON."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from avalanche.evaluation.metric_results import AlternativeValues
from avalanche.logging import BaseLogger
from torch import Tensor

from plasticity.errors import UserError

_CONVERTIBLE = (Real, str, np.generic, np.ndarray, Tensor, list, tuple, dict)


class JSONLinesLogger(BaseLogger):
    """Writes everything that Avalanche's evaluator emits, one object a line: `{"name": ..., "value": ..., "x": ...}`.

    Values are plain numbers. A value that is not finite is null, and `"nonfinite"` then says "nan", "inf" or "-inf"; a
    matrix, such as a confusion matrix, is a list of lists, with null where it is not finite; a dictionary gives a line
    for each of its entries, the key at the end of the name. What JSON cannot hold, such as a figure, is left out, with
    one warning for each type. What plugins publish through the evaluator is written too.

    Each line reaches the file at once. The logger can be pickled with its strategy; what comes later is appended to
    the same file.

    Args:
        path: The file; folders above it are made.
        append: Add to a file that is already there, instead of emptying it.

    Raises:
        UserError: If the file cannot be written.
    """

    def __init__(self, path: str | PathLike[str], *, append: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Avalanche does not annotate it
        self.path = begun(path, append)
        self._left_out: set[str] = set()
        self._file: TextIO | None = self._open()

    def log_single_metric(self, name: str, value: Any, x_plot: Any) -> None:
        """Write one value.

        Args:
            name: Full name of the metric.
            value: A number, or what can be turned into numbers.
            x_plot: Position of the value, in training iterations.
        """
        if isinstance(value, AlternativeValues):
            best = value.best_supported_value(*_CONVERTIBLE)
            value = value.alternatives[0] if best is None else best
        try:
            entry: dict[str, Any] = {"name": name, "value": _plain(value), "x": _plain(x_plot)}
        except TypeError as error:
            self._leave_out(name, str(error))
            return
        if isinstance(entry["value"], float) and not math.isfinite(entry["value"]):
            entry["nonfinite"] = str(entry["value"])
        if self._file is None:
            self._file = self._open()
        self._file.write(json.dumps(_finite(entry), ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        """Close the file; a value that comes later opens it again and is appended."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> JSONLinesLogger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _open(self) -> TextIO:
        # Appending, so that two loggers of one file, such as a run and its restored copy, overwrite nothing.
        return self.path.open("a", buffering=1, encoding="utf-8", newline="\n")

    def _leave_out(self, name: str, kind: str) -> None:
        if kind not in self._left_out:
            self._left_out.add(kind)
            warnings.warn(f"{name} is of type {kind}, which JSON cannot hold: such values are left out", stacklevel=2)


def begun(path: str | PathLike[str], append: bool) -> Path:
    """Make a file that lines are to be added to, and the folders above it; return its absolute path.

    Args:
        path: The file.
        append: Leave what is in it, instead of emptying it.

    Raises:
        UserError: If it cannot be written.
    """
    file = Path(path).absolute()
    try:
        if not file.parent.exists():
            file.parent.mkdir(parents=True)
        file.open("a" if append else "w").close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return file


def as_json(value: Any) -> Any:
    """Return a value as JSON can hold it: plain, with null in place of numbers that are not finite.

    Raises:
        TypeError: If it cannot.
    """
    return _finite(_plain(value))


def _plain(value: Any) -> Any:
    """Turn a value into numbers, text, lists and dictionaries; a TypeError carries the name of another type."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Tensor):
        array = value.detach().cpu()
        return _plain(array.item() if array.dim() == 0 else array.tolist())
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    raise TypeError(type(value).__name__)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
