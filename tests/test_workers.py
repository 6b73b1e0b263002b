"""The server from which processes of runs are forked is started when it is needed, and before anything slow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import workers

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    ("run digits --jobs 2", "1"),
    ("run digits --strategies naive --jobs=3 --seeds 2 --threads 2", "2"),
    ("tune digits --device cpu --jobs 2", "1"),
    ("study width-depth --jobs 2", "1"),
    ("run digits", None),
    ("run digits --jobs 1", None),
    ("run digits --jobs", None),
    ("run digits --jobs two", None),
    ("run digits --jobs 2 --threads none", None),
    ("run digits --jobs 2 --device cuda", None),
    ("compare results --jobs 2", None),
    ("", None),
]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no server")
@pytest.mark.parametrize("command, threads", COMMANDS, ids=[command for command, _ in COMMANDS])
def test_the_server_is_started_for_commands_with_several_jobs_on_a_cpu(command, threads, monkeypatch):
    started = []
    monkeypatch.setattr(workers, "ensure_running", lambda: started.append(os.environ["OMP_NUM_THREADS"]))
    monkeypatch.setattr(os, "environ", {})
    workers.prepare(command.split())
    assert started == ([threads] if threads else [])


def test_nothing_slow_is_imported_before():
    code = "import sys, benchmarks.__main__; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


IMPORTS = """
import gc, sys
from benchmarks.importing import import_uncollected
gc.disable()
import_uncollected("json.tool")
assert not gc.isenabled()
gc.enable()
collected = []
gc.callbacks.append(lambda phase, info: collected.append(phase))
import_uncollected("benchmarks.data", "sklearn.datasets")
assert not collected and "sklearn.datasets" in sys.modules and gc.isenabled()
try:
    import_uncollected("no_such_module")
except ImportError:
    assert gc.isenabled()
else:
    raise AssertionError
"""


def test_no_garbage_is_looked_for_while_modules_are_imported():
    assert subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("on_cpu, kind", [(True, "forkserver"), (False, "spawn")])
def test_processes_for_a_gpu_are_not_forked(on_cpu, kind, monkeypatch):
    monkeypatch.setattr(workers, "ensure_running", lambda: None)
    monkeypatch.setattr(os, "environ", {})
    if sys.platform == "linux":
        assert workers.workers(on_cpu, 1).get_start_method() == kind
