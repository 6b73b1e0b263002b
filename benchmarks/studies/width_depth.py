"""Synaptic stripping's ablation: networks of many widths and depths, with and without it.

One data set, as the authors have it. A wide or deep network loses units while it trains; stripping is to bring them
back.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.comparison.statistics import excludes_zero
from benchmarks.studies.study import Asked, Finished, Report, Study, StudyRun, last_treatment, over_seeds, study_run
from benchmarks.studies.tables import Column, written

STRATEGIES = {
    "naive": "naive",
    "stripping, authors’ rule": "synaptic-stripping-whitaker2023",
    "stripping, guarded rule": "synaptic-stripping:every=epoch",
}
BENCHMARKS = {"split-digits": {"epochs": 40, "batch_size": 64}}
FULL_BENCHMARKS = {"split-mnist": {"epochs": 10, "batch_size": 128}, "split-cifar10": {"epochs": 10, "batch_size": 128}}
WIDTHS, DEPTHS = (32, 128, 512), (2, 4, 8)
FULL_WIDTHS, FULL_DEPTHS = (64, 256, 1024, 2048), (2, 4, 8, 16)
LEARNING_RATE = 5e-3
MANY = 0.05
"""Share of dead units from which on a network is said to lose units."""


@dataclass(frozen=True)
class Size:
    """One size of network, trained in every way.

    Args:
        benchmark: Name of the benchmark, all of whose classes come at once.
        depth: Hidden layers.
        width: Units in each.
        runs: By a name in `STRATEGIES`, one run a seed.
    """

    benchmark: str
    depth: int
    width: int
    runs: dict[str, list[StudyRun]]


def sizes(asked: Asked) -> list[Size]:
    """Return all sizes of networks, smallest first."""
    benchmarks = FULL_BENCHMARKS if asked.full else BENCHMARKS
    widths, depths = (FULL_WIDTHS, FULL_DEPTHS) if asked.full else (WIDTHS, DEPTHS)
    return [
        Size(benchmark, depth, width, _runs(asked, benchmark, f"mlp-{depth}x{width}", settings))
        for benchmark, settings in benchmarks.items()
        for depth in depths
        for width in widths
    ]


def _runs(asked: Asked, benchmark: str, model: str, settings: dict[str, Any]) -> dict[str, list[StudyRun]]:
    shared = {"experiences": 1, "optimizer": "adam", "learning_rate": LEARNING_RATE, **settings}
    return {
        title: [
            study_run(asked, model, benchmark, strategy, seed, model=model, **shared) for seed in range(asked.seeds)
        ]
        for title, strategy in STRATEGIES.items()
    }


def runs(asked: Asked) -> list[StudyRun]:
    """Declare the runs."""
    return [run for size in sizes(asked) for some in size.runs.values() for run in some]


def report(asked: Asked, finished: Finished) -> Report:
    """Turn finished runs into one row a size and way of training, and a finding."""
    rows, gains = [], []
    for size in sizes(asked):
        dead = {title: finished.measures(some, "dead_fraction") for title, some in size.runs.items()}
        accuracy = {title: finished.measures(some, "average_accuracy") for title, some in size.runs.items()}
        for title, some in size.runs.items():
            rows.append(
                {
                    "benchmark": size.benchmark,
                    "depth": size.depth,
                    "width": size.width,
                    "strategy": title,
                    "dead": over_seeds(dead[title]),
                    "live": over_seeds((1 - dead[title]) * size.depth * size.width),
                    "removed": over_seeds([_removed(finished[run]) for run in some]),
                    "accuracy": over_seeds(accuracy[title]),
                    "gain": None if title == "naive" else over_seeds(accuracy[title] - accuracy["naive"]),
                    **finished.diverged(some),
                }
            )
        gains.append((size, dead, accuracy))
    return Report(rows, _finding(gains))


def _removed(result: dict[str, Any]) -> float:
    """Share of the weights of stripped layers that are gone at the end."""
    last = last_treatment(result)
    return 0.0 if last is None else float(last["removed_fraction"])


def _finding(gains: list[tuple[Size, dict[str, np.ndarray], dict[str, np.ndarray]]]) -> str:
    losing = [each for each in gains if each[1]["naive"].mean() >= MANY]
    others = [each for each in gains if each[1]["naive"].mean() < MANY]
    worst = max(gains, key=lambda each: float(each[1]["naive"].mean()))
    sentences = [
        f"Of {len(gains)} sizes, {len(losing)} lose at least {MANY:.0%} of their units without stripping, most of all "
        f"{_named(worst[0])} with {written(over_seeds(worst[1]['naive']), 2)} dead."
    ]
    for title in list(STRATEGIES)[1:]:
        if losing:
            left = np.mean([dead[title] for _, dead, _ in losing], axis=0)
            naive = np.mean([dead["naive"] for _, dead, _ in losing], axis=0)
            sentences.append(
                f"There {title} leaves a share of {written(over_seeds(left), 2)} dead, where naive has "
                f"{written(over_seeds(naive), 2)}; accuracy changes by {_change(title, losing)}."
            )
        if others:
            sentences.append(f"In the other sizes accuracy changes with {title} by {_change(title, others)}.")
    return " ".join(sentences)


def _change(title: str, some: list[tuple[Size, dict[str, np.ndarray], dict[str, np.ndarray]]]) -> str:
    """Write the change of accuracy against naive: on average, and in how many sizes the interval leaves 0 out."""
    each = [accuracy[title] - accuracy["naive"] for _, _, accuracy in some]
    clear = [change for change in map(over_seeds, each) if excludes_zero(change)]
    better = sum((change["mean"] or 0) > 0 for change in clear)
    average = written(over_seeds(np.mean(each, axis=0)), 3, sign=True)
    return f"{average} on average (better in {better} of {len(some)} sizes, worse in {len(clear) - better})"


def _named(size: Size) -> str:
    return f"{size.depth} layers of {size.width} units on {size.benchmark.removeprefix('split-')}"


STUDY = Study(
    name="width-depth",
    question="Does synaptic stripping keep wide and deep networks alive, and do they learn better for it?",
    source="the ablation of Whitaker and Whitley 2023, arXiv 2302.05818; sizes, data and training chosen here",
    columns=(
        Column("benchmark", "benchmark"),
        Column("depth", "layers"),
        Column("width", "units\neach"),
        Column("strategy", "trained with"),
        Column("dead", "dead\nunits", "share of hidden units that are 0 on all of a fixed probe, at the end"),
        Column("live", "live\nunits", digits=0),
        Column("removed", "removed\nweights", "share of the weights of all layers that were ever stripped", digits=2),
        Column("accuracy", "test\naccuracy"),
        Column("gain", "gain over\nnaive", "difference on the same seeds"),
    ),
    seeds=3,
    full_seeds=3,
    runs=runs,
    report=report,
)
