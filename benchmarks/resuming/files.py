"""Where checkpoints are: two files, written one after the other, of which one is always whole.

A file is a line with a checksum of the rest, a line of JSON that says what the checkpoint belongs to, and its parts as
bytes. It is written beside its place and moved there once it is on the disk; the one before stays until then.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 1
_MAGIC = b"plasticity-checkpoint"
_NAMES = ("checkpoint-0", "checkpoint-1")
_NEW = "checkpoint-new"


class _WrongFileError(Exception):
    """A file that is no checkpoint of this run; the message says why."""


class Found(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        number: How many were written before it.
        parts: What was saved.
    """

    number: int
    parts: list[bytes]


class CheckpointFiles:
    """The checkpoints of one run, in its folder.

    Args:
        folder: The folder.
        belongs: What the run is, in plain values; a checkpoint of anything else is not used.

    Attributes:
        problems: What was found wrong by `read`, in words.
    """

    def __init__(self, folder: Path, belongs: dict[str, Any]):
        self.folder = folder
        self.belongs: dict[str, Any] = json.loads(json.dumps({**belongs, "format": FORMAT}))
        self.problems: list[str] = []
        self._next = 0

    def write(self, parts: Sequence[bytes]) -> None:
        """Write a checkpoint in place of the one before the latest.

        Args:
            parts: What to save.

        Raises:
            OSError: If it cannot be written; those that are there stay.
        """
        new = self.folder / _NEW
        head = {"number": self._next, "lengths": [len(part) for part in parts], "belongs": self.belongs}
        content = [json.dumps(head).encode() + b"\n", *parts]
        checksum = hashlib.sha256()
        for piece in content:
            checksum.update(piece)
        try:
            with new.open("wb") as file:
                file.write(_MAGIC + b" " + checksum.hexdigest().encode() + b"\n")
                for piece in content:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.folder / _NAMES[self._next % 2])
        except OSError:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise
        self._next += 1

    def read(self) -> Iterator[Found]:
        """Read the checkpoints that are whole and belong to the run, the latest first."""
        found = []
        self.problems = []
        for name in _NAMES:
            path = self.folder / name
            try:
                found.append(_read(path, self.belongs))
            except FileNotFoundError:
                continue
            except (OSError, _WrongFileError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                self.problems.append(f"{name} is not used: {reason}")
        found.sort(reverse=True, key=lambda each: each.number)
        self._next = found[0].number + 1 if found else 0
        return iter(found)

    def remove(self) -> None:
        """Remove them all."""
        for name in (*_NAMES, _NEW):
            (self.folder / name).unlink(missing_ok=True)


def has_checkpoint(folder: Path) -> bool:
    """Say whether there is a checkpoint in a folder, whole or not."""
    return any((folder / name).exists() for name in _NAMES)


def _read(path: Path, belongs: dict[str, Any]) -> Found:
    content = path.read_bytes()
    first, _, rest = content.partition(b"\n")
    magic, _, checksum = first.partition(b" ")
    if magic != _MAGIC:
        raise _WrongFileError("it is no checkpoint")
    if hashlib.sha256(rest).hexdigest().encode() != checksum:
        raise _WrongFileError("it is damaged")
    line, _, data = rest.partition(b"\n")
    try:
        head = json.loads(line)
        number, lengths, found = int(head["number"]), [int(length) for length in head["lengths"]], head["belongs"]
    except (ValueError, KeyError, TypeError):
        raise _WrongFileError("it is no checkpoint") from None
    if found != belongs:
        raise _WrongFileError(f"it is of another run or version ({_difference(found, belongs)})")
    if sum(lengths) != len(data):
        raise _WrongFileError("it is damaged")
    parts, start = [], 0
    for length in lengths:
        parts.append(data[start : start + length])
        start += length
    return Found(number, parts)


def _difference(found: Any, asked: Any, name: str = "") -> str:
    """Name the first thing in which two descriptions differ."""
    if isinstance(found, dict) and isinstance(asked, dict):
        for key in sorted({*found, *asked}, key=str):
            if found.get(key) != asked.get(key):
                return _difference(found.get(key), asked.get(key), str(key))
    return name or "what it is"
