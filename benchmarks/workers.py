"""How the processes of runs are made; imports nothing that takes long."""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from multiprocessing.forkserver import ensure_running

_COMMANDS = ("run", "tune", "study")


def workers(on_cpu: bool, threads: int) -> BaseContext:
    """Say how processes for runs are to be made.

    Imports take as long as some runs do. So that they are done once, and while this process does its own, a server is
    started that imports everything and does nothing else, from which the processes are then forked. Not for a GPU,
    which cannot be used in a fork of a process in which anything has looked for it.

    Args:
        on_cpu: Whether all runs are on a CPU.
        threads: Of the run that has most.
    """
    # Pinned here, for the children read it as they start, before anything sets the number of threads.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))
    if sys.platform != "linux" or not on_cpu:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.preloaded"])
    ensure_running()
    return context


def prepare(words: Sequence[str]) -> None:
    """Start the server as soon as the words of a command tell that there will be processes.

    PyTorch alone takes more than a second to import, which the command line does before it understands its words. Where
    they say nothing of processes, as with a file of settings, `workers` starts the server later.

    Args:
        words: After `python -m benchmarks`; mistakes in them are left for others to find.
    """
    if not words or words[0] not in _COMMANDS:
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option, usual in (("--jobs", "1"), ("--threads", "1"), ("--device", "cpu")):
        parser.add_argument(option, nargs="?", const="", default=usual)
    asked, _ = parser.parse_known_args(list(words[1:]))
    if not (asked.jobs.isdecimal() and asked.threads.isdecimal()):
        return
    if int(asked.jobs) > 1 and int(asked.threads) > 0 and asked.device == "cpu":
        workers(True, int(asked.threads))
