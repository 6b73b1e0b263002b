"""What the server imports from which processes for runs are forked."""

from benchmarks.importing import RUNNING, import_uncollected

import_uncollected(*RUNNING)
