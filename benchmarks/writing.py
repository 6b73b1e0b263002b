"""Files that appear whole or not at all."""

import os
from pathlib import Path

from plasticity.errors import UserError


def write_whole(output: Path, text: str) -> None:
    """Writes a file by one rename; a device, a pipe and the target of a link are written to.

    Args:
        output: the file.
        text: its content.

    Raises:
        UserError: if it cannot be written.
    """
    path = Path(output).resolve()
    temporary = _beside(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_text(text, encoding="utf-8", newline="\n")  # must not be replaced by a file
            return
        try:
            temporary.write_text(text, encoding="utf-8", newline="\n")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error


def check_writable(output: Path) -> None:
    """Sees that a file can be written, and leaves what is there as it is.

    Args:
        output: the file.

    Raises:
        UserError: if it cannot be written.
    """
    path = Path(output).resolve()
    if path.is_dir():
        raise UserError(f"cannot write {output}: it is a folder")
    trial = _beside(path)
    try:
        if path.exists():
            path.open("a").close()
        if not path.exists() or path.is_file():
            trial.touch()
            trial.unlink()
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error


def _beside(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}")
