"""Folders that appear when they are complete; what was begun stays hidden, and is taken up again."""

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from benchmarks.resuming.files import has_checkpoint
from plasticity.errors import UserError

_LOCK = ".lock"


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Give a hidden folder to fill, which gets its name by one rename if the block ends well.

    It is new, or that of an interrupted process that has left a checkpoint. If the block fails, it is removed, unless
    there is a checkpoint in it; if it ends well, so is what any other process has left of the same. A lock that ends
    with the process says whether a hidden folder belongs to anybody.

    Args:
        folder: Its name in the end.

    Raises:
        UserError: If another process is filling it under the same name.
    """
    hidden = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    lock = _take_over(folder, hidden)
    if lock is None:
        try:
            hidden.mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"another process is at work on {folder}") from None
        lock = _locked(hidden)
    try:
        yield hidden
        (hidden / _LOCK).unlink(missing_ok=True)
        _to_disk(hidden)
        os.rename(hidden, folder)
        _to_disk(folder.parent)
        _remove_left(folder.parent, f".{glob.escape(folder.name)}.partial-*")
    finally:
        if hidden.exists() and not has_checkpoint(hidden):
            shutil.rmtree(hidden, ignore_errors=True)
        if lock is not None:
            lock.close()


def clear_away(parent: Path) -> None:
    """Remove what interrupted processes have left below a folder and nobody can go on from."""
    _remove_left(parent, ".*.partial-*")


def _remove_left(parent: Path, pattern: str) -> None:
    """Remove abandoned hidden folders without a checkpoint, and those of what has been completed since."""
    for left in parent.glob(pattern):
        lock = _abandoned(left)
        if lock is not None:
            complete = left.with_name(left.name[1:].rpartition(".partial-")[0]).exists()
            if complete or not has_checkpoint(left):
                shutil.rmtree(left, ignore_errors=True)
            lock.close()


def _take_over(folder: Path, hidden: Path) -> IO[str] | None:
    """Give the latest abandoned folder with a checkpoint a new name, and remove the others; returns its lock."""
    left: list[tuple[float, Path, IO[str]]] = []
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):
        lock = _abandoned(path)
        if lock is not None:
            left.append((path.stat().st_mtime, path, lock))
    left.sort(key=lambda each: (has_checkpoint(each[1]), each[0]))
    chosen = left.pop() if left and has_checkpoint(left[-1][1]) else None
    for _, path, lock in left:
        shutil.rmtree(path, ignore_errors=True)
        lock.close()
    if chosen is None:
        return None
    _, path, lock = chosen
    if path != hidden:
        os.rename(path, hidden)
    return lock


def _abandoned(path: Path) -> IO[str] | None:
    """Return the lock of a hidden folder if no process is at work on it, now ours; else None."""
    owner = path.name.rsplit("-", 1)[1]
    begun = (path / _LOCK).exists()
    if not begun and owner.isdigit() and int(owner) != os.getpid() and _alive(int(owner)):
        return None  # has just made it
    return _locked(path)


def _locked(path: Path) -> IO[str] | None:
    """Return a lock on a folder, which is held until it is closed, also by death; None if somebody else holds it."""
    try:
        file = (path / _LOCK).open("a")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _to_disk(folder: Path) -> None:
    """Let the names in a folder reach the disk."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
