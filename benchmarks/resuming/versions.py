"""What a checkpoint belongs to: the run, the versions of what it ran on, and the code itself."""

import hashlib
import sys
from pathlib import Path
from typing import Any

from benchmarks.settings import RunSettings

_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("plasticity", "strategies", "benchmarks")
_APART = ("benchmarks/cli", "benchmarks/comparison", "benchmarks/cost", "benchmarks/studies")
"""Code that no run depends on while it trains."""


def belongs(run: RunSettings, modules: list[str]) -> dict[str, Any]:
    """Describe a run so that a checkpoint of it is only used where an uninterrupted run would have been the same.

    Args:
        run: What is run.
        modules: A user's modules that were imported for it.
    """
    config = run.config()
    environment = {name: value for name, value in config["environment"].items() if name not in ("cpu", "platform")}
    return {**config, "environment": environment, "code": _OWN, "modules": _users(modules)}


def _own_files() -> list[Path]:
    files = [path for name in _CODE for path in (_ROOT / name).rglob("*.py")]
    return [path for path in files if not path.relative_to(_ROOT).as_posix().startswith(_APART)]


def _users(modules: list[str]) -> dict[str, str]:
    found = {}
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            path = Path(file)
            found[name] = _digest(list(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path])
    return found


def _digest(files: list[Path]) -> str:
    checksum = hashlib.sha256()
    for path in sorted(files):
        checksum.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return checksum.hexdigest()


_OWN = _digest(_own_files())
"""Of the code as it was when it was loaded, as far as one can know."""
