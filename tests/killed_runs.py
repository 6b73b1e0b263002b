"""A program that does runs in processes of its own, as many as it is told to, so that they can be killed.

Everything is imported once, and each run is a fork of that. It reads a line for each run, JSON, and answers with the
number of the process, and with its exit status once that has ended.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch

from benchmarks.resuming.files import CheckpointFiles
from benchmarks.runner import run_one
from benchmarks.settings import resolve

LAST = "last-checkpoint"


def keep_last(files):
    """Keep the last checkpoint beside the results, before all are removed."""
    for found in files.read():
        (files.folder.parent / LAST).write_bytes(found.parts[0])
        break
    remove(files)


def do(asked):
    """Do one run and end the process."""
    CheckpointFiles.remove = keep_last
    try:
        run = resolve("permuted-digits", asked["strategy"], 0, experiences=6, epochs=1, learning_rate=0.005)
        run_one(run, Path(asked["out"]), [], lambda done: None, checkpoint_minutes=0.001)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    remove = CheckpointFiles.remove
    import benchmarks.training  # noqa: F401  # what forks are to have
    import plasticity.plugins  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            do(json.loads(line))
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
