"""Places in the file of metric values, up to which a checkpoint has it."""

import hashlib
import os
from pathlib import Path
from typing import Any


class ChangedError(Exception):
    """A file that is not what it was; the message says which."""


class Marks:
    """Places in a file that is only added to, with a checksum of what is before them."""

    def __init__(self) -> None:
        self._length = 0
        self._checksum = hashlib.sha256()

    def mark(self, path: Path) -> dict[str, Any]:
        """Return the place at the end of a file, now that everything was written to it."""
        with path.open("rb") as file:
            file.seek(self._length)
            while piece := file.read(2**20):
                self._checksum.update(piece)
                self._length += len(piece)
        return {"length": self._length, "sha256": self._checksum.hexdigest()}

    def go_back(self, path: Path, mark: dict[str, Any]) -> None:
        """Cut a file off at a place.

        Raises:
            ChangedError: If what is before it is not what it was.
        """
        self._length, self._checksum = 0, hashlib.sha256()
        try:
            with path.open("rb+") as file:
                while self._length < mark["length"] and (piece := file.read(min(2**20, mark["length"] - self._length))):
                    self._checksum.update(piece)
                    self._length += len(piece)
                if self._length != mark["length"] or self._checksum.hexdigest() != mark["sha256"]:
                    raise ChangedError(f"{path.name} has changed since")
                file.truncate(self._length)
                os.fsync(file.fileno())
        except FileNotFoundError:
            raise ChangedError(f"{path.name} is missing") from None
