"""Studies by name, each a file that declares its runs and turns them into a table and a finding in words.

`python -m benchmarks study NAME --out DIR` does the runs that are not done yet and writes the table.
"""

import importlib

from benchmarks.studies.study import Asked, Finished, Report, Study, StudyRun, run_study, study_run
from plasticity.errors import unknown

__all__ = ["STUDIES", "Asked", "Finished", "Report", "Study", "StudyRun", "get_study", "run_study", "study_run"]

STUDIES = ("demon-pruning", "dying-units", "width-depth", "hyper-hypo")
"""Their names; `demon-pruning` is in the file `demon_pruning`, and so on."""


def get_study(name: str) -> Study:
    """Look a study up.

    Raises:
        UserError: If there is none of that name; lists those there are.
    """
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    found: Study = importlib.import_module(f"benchmarks.studies.{name.replace('-', '_')}").STUDY
    return found
