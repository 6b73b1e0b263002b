"""Histograms of how often units fire, before and after each intervention."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.comparison.results import Run
from plasticity.errors import UserError

BINS = 20
"""Equal bins of the firing frequency from 0 to 1; the last holds 1 itself."""

SHOWN = 60
"""At most so many interventions are put into the page, evenly spread."""


def activity(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Activity before and after the interventions of one run.

    A treatment may hold "activity_before" and "activity_after": by layer, how many units fire how often on a probe just
    before and just after it, as `BINS` counts.

    Args:
        runs: the runs of one strategy.

    Returns:
        Of the first run that recorded it: "seed", "layers", and for each intervention its "experience" and "before" and
        "after" as one list of counts a layer, an empty one for a layer that is not in it; None if no run has any.

    Raises:
        UserError: if what is recorded is something else.
    """
    for run in runs:
        recorded = [entry for entry in run.treatments if "activity_before" in entry and "activity_after" in entry]
        if not recorded:
            continue
        for entry in recorded:
            _check(entry, run)
        step = (len(recorded) - 1) / (min(len(recorded), SHOWN) - 1) if len(recorded) > 1 else 1
        chosen = [recorded[round(index * step)] for index in range(min(len(recorded), SHOWN))]
        names = list(dict.fromkeys(name for entry in chosen for name in entry["activity_before"]))
        return {
            "seed": run.seed,
            "layers": names,
            "interventions": [
                {
                    "experience": entry.get("experience"),
                    "before": [entry["activity_before"].get(name, []) for name in names],
                    "after": [entry["activity_after"].get(name, []) for name in names],
                }
                for entry in chosen
            ],
        }
    return None


def _check(entry: Mapping[str, Any], run: Run) -> None:
    for key in ("activity_before", "activity_after"):
        found = entry[key]
        counts = list(found.values()) if isinstance(found, Mapping) else [None]
        if not all(
            isinstance(each, list) and len(each) == BINS and all(type(count) is int and count >= 0 for count in each)
            for each in counts
        ):
            place = f"{run.benchmark}/{run.strategy}/seed-{run.seed}"
            raise UserError(f"{place}: {key} of a treatment should hold {BINS} counts by layer")
