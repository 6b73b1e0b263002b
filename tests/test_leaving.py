"""A command that leaves quickly leaves nothing undone."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import atexit, sys, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
from benchmarks.leaving import leave

folder = tempfile.TemporaryDirectory(dir=sys.argv[1])
atexit.register(print, "registered")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
pool = ThreadPoolExecutor(1)  # which nobody shuts down
pool.submit(time.sleep, 0)
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


class Taken:
    def __del__(self):
        print("taken apart")


taken = Taken()
print("x" * 100_000)
leave(3)
"""


def test_threads_are_waited_for_functions_called_and_output_written(tmp_path):
    ended = subprocess.run([sys.executable, "-c", CODE, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 3 and not ended.stderr
    assert ended.stdout.split() == ["x" * 100_000, "thread", "registered"]
    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_its_code():
    command = [sys.executable, "-m", "benchmarks", "compare"]
    for words, code, said in ((["no-such-folder"], 2, "error: "), (["--help"], 0, "")):
        ended = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == code and ended.stderr.startswith(said)
