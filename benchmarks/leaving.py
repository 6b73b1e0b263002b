"""The end of a command; imports nothing that takes long."""

import atexit
import os
import sys
import threading
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process as `sys.exit` does, but for taking apart all that was imported, which takes more than a second.

    Threads are waited for, functions registered with `atexit` are called, and what was printed is written.

    Args:
        code: Of the exit.
    """
    # What Python itself calls in this place: pools are told to end, and threads waited for.
    threading._shutdown()  # type: ignore[attr-defined]  # the stub lacks it
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
