"""How many random cases tests draw, a few in `make test` and many in `make nightly`, and what became of them."""

import os
from collections import Counter
from dataclasses import dataclass

from hypothesis import HealthCheck, settings


@dataclass(frozen=True)
class Size:
    """How much is drawn.

    Attributes:
        models: Random models that have private groups; those that have none come on top.
        strategies: Names of strategies with options.
        commands: Command lines of `run`.
        files: Configuration files.
        plugins: Calls of plugins with arguments.
        runs: Strategies with options that are trained.
    """

    models: int
    strategies: int
    commands: int
    files: int
    plugins: int
    runs: int


SIZES = {
    "quick": Size(models=60, strategies=100, commands=40, files=40, plugins=200, runs=2),
    "nightly": Size(models=1200, strategies=3000, commands=2000, files=2000, plugins=4000, runs=60),
}
CHOSEN = os.environ.get("PLASTICITY_TESTS", "quick")
if CHOSEN not in SIZES:
    raise ValueError(f"PLASTICITY_TESTS must be one of {', '.join(SIZES)}, not {CHOSEN!r}")
SIZE = SIZES[CHOSEN]

COUNTS: Counter[str] = Counter()
"""What was drawn in this process, printed at the end of a session."""

for _name in SIZES:
    settings.register_profile(
        _name,
        deadline=None,
        derandomize=_name == "quick",  # every night sees others, and says how to draw again what fails
        print_blob=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
settings.load_profile(CHOSEN)


def drawn(cases: int) -> settings:
    """Return the settings of a property that is to hold for so many cases."""
    return settings(settings.get_profile(CHOSEN), max_examples=cases)


def summary(counts: Counter[str]) -> list[str]:
    """Say what was drawn, line by line."""
    lines = []
    if counts["models"]:
        lines.append(
            f"random models: {counts['models']} drawn, {counts['models with private groups']} with private groups; "
            f"{counts['private groups']} of {counts['groups']} groups are private, "
            f"{counts['private units']} of {counts['units']} units; {counts['steps']} steps"
        )
    for kind in ("strategies", "commands", "files", "plugins"):
        if counts[kind]:
            taken = counts[f"{kind} accepted"]
            lines.append(f"random {kind}: {counts[kind]} drawn, {taken} accepted, {counts[kind] - taken} refused")
    if counts["runs"]:
        lines.append(f"random runs: {counts['runs']} trained")
    return lines
