"""Imports that take seconds, in less of them; imports nothing that takes long."""

import gc
import importlib
import sys

RUNNING = ("benchmarks.training", "benchmarks.resuming.keeping")
"""What a process needs for runs."""


def import_uncollected(*names: str) -> None:
    """Import modules without looking for garbage meanwhile: they make half a million objects, and hardly any of it.

    To look through these again and again takes a fifth of the time of the imports.

    Args:
        names: Of modules; where all are there already, nothing is done.
    """
    if all(name in sys.modules for name in names):
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        if collecting:
            gc.enable()
