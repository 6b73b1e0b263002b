"""Entry point of `python -m benchmarks`."""

import sys

from benchmarks.workers import prepare

if __name__ == "__main__":
    prepare(sys.argv[1:])
    from benchmarks.cli import main  # after that, for it takes seconds

    sys.exit(main())
