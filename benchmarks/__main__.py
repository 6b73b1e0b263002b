"""Entry point of `python -m benchmarks`."""

import sys

from benchmarks.importing import import_uncollected
from benchmarks.leaving import leave
from benchmarks.workers import prepare

if __name__ == "__main__":
    prepare(sys.argv[1:])
    import_uncollected("benchmarks.cli")
    from benchmarks.cli import main

    leave(main())
