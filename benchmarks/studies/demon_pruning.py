"""The accuracy–sparsity front of Demon pruning: how much accuracy is left at which share of pruned units.

CIFAR-10, all classes at once. How many units die is steered by the strength of the penalty alone, from none (naive) to
1e-1, in finer steps where most happens. Both ways of pruning are run: masks, and the removal by which the network gets
smaller and faster. Optimizer, learning rate and weight decay are the authors' for a residual network on CIFAR-10; at a
smaller rate the same strengths hardly prune in so few steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.comparison.statistics import geometric_ratio
from benchmarks.models import build_model
from benchmarks.studies.step_time import step_ratio
from benchmarks.studies.study import Asked, Finished, Report, Study, StudyRun, last_treatment, over_seeds, study_run
from benchmarks.studies.tables import Column, level, number, written

STRENGTHS = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
MODES = {"mask": "demon-pruning", "shrink": "demon-pruning-shrink"}
EPOCHS = {"pairs-conv-bn": 5}
FULL_EPOCHS = {"pairs-conv-bn": 30, "slim-resnet18": 15}
TRAINING = {"optimizer": "adamw", "learning_rate": 5e-3, "weight_decay": 5e-4, "batch_size": 64}
SHAPE, CLASSES = (3, 32, 32), 10
TOLERATED = 0.01
"""A loss of accuracy up to which pruning counts as free of charge."""

StepRatio = Callable[..., list[float]]


@dataclass(frozen=True)
class Front:
    """One network, trained with every strength of the penalty.

    Args:
        model: Name of the network.
        naive: Its runs without Demon pruning, one a seed.
        pruned: By strength and mode, one run a seed.
    """

    model: str
    naive: list[StudyRun]
    pruned: dict[tuple[float, str], list[StudyRun]]


def fronts(asked: Asked) -> list[Front]:
    """Return the networks with their runs."""
    return [_front(asked, model, epochs) for model, epochs in (FULL_EPOCHS if asked.full else EPOCHS).items()]


def _front(asked: Asked, model: str, epochs: int) -> Front:
    settings = {"experiences": 1, "model": model, "epochs": epochs, **TRAINING}

    def runs_of(strategy: str) -> list[StudyRun]:
        return [study_run(asked, model, "split-cifar10", strategy, seed, **settings) for seed in range(asked.seeds)]

    return Front(
        model,
        runs_of("naive"),
        {
            (strength, mode): runs_of(f"{strategy}:regularisation={strength:g}")
            for strength in STRENGTHS
            for mode, strategy in MODES.items()
        },
    )


def runs(asked: Asked) -> list[StudyRun]:
    """Declare the runs."""
    return [run for front in fronts(asked) for some in (front.naive, *front.pruned.values()) for run in some]


def report(asked: Asked, finished: Finished, ratio: StepRatio = step_ratio) -> Report:
    """Turn finished runs into one row a network, strength and mode, and a finding; times steps of the shrunk networks.

    Args:
        asked: What was asked.
        finished: The runs.
        ratio: Measures steps, as `step_time.step_ratio`.
    """
    rows: list[dict[str, Any]] = []
    sentences = []
    for front in fronts(asked):
        table = [_naive_row(front, finished)]
        table += [_row(front, strength, mode, finished) for strength, mode in front.pruned]
        _add_step_times(table, front, finished, ratio)
        sentences.append(_finding(front.model, table))
        rows += table
    return Report(rows, " ".join(sentences))


def _naive_row(front: Front, finished: Finished) -> dict[str, Any]:
    return {
        "model": front.model,
        "strength": 0.0,
        "mode": "naive",
        "accuracy": over_seeds(finished.measures(front.naive, "average_accuracy")),
        "loss": None,
        "dead": over_seeds(finished.measures(front.naive, "dead_fraction")),
        "units": over_seeds([0.0] * len(front.naive)),
        "weights": over_seeds([0.0] * len(front.naive)),
        "parameters": over_seeds([finished[run]["parameters"] for run in front.naive]),
        "time": None,
        "step": None,
        **finished.diverged(front.naive),
    }


def _row(front: Front, strength: float, mode: str, finished: Finished) -> dict[str, Any]:
    some = front.pruned[strength, mode]
    last = [last_treatment(finished[run]) for run in some]
    whole = np.array([finished[run]["parameters"] for run in front.naive], dtype=float)
    left = np.array([of if each is None else each["parameters"] for each, of in zip(last, whole, strict=True)])
    accuracy = finished.measures(some, "average_accuracy")
    seconds = [[finished[run]["processor"]["seconds"] for run in each] for each in (some, front.naive)]
    return {
        "model": front.model,
        "strength": strength,
        "mode": mode,
        "accuracy": over_seeds(accuracy),
        "loss": over_seeds(finished.measures(front.naive, "average_accuracy") - accuracy),
        "dead": over_seeds(finished.measures(some, "dead_fraction")),
        "units": over_seeds([0.0 if each is None else each["pruned_fraction"] for each in last]),
        "weights": over_seeds(1 - left / whole),
        "parameters": over_seeds(left),
        "time": geometric_ratio(np.array(seconds[0]), np.array(seconds[1])),
        "step": None,
        **finished.diverged(some),
    }


def _add_step_times(table: list[dict[str, Any]], front: Front, finished: Finished, ratio: StepRatio) -> None:
    """Time a step of every shrunk network against one of the whole network."""
    shrunk = [(strength, run) for (strength, mode), some in front.pruned.items() if mode == "shrink" for run in some]
    sizes = [{name: layer["size"] for name, layer in finished[run]["units"][-1]["layers"].items()} for _, run in shrunk]
    build = partial(build_model, front.model, CLASSES, SHAPE)
    ratios = ratio(build, sizes, SHAPE, CLASSES, front.naive[0].batch_size)
    found: dict[float, list[float]] = {}
    for (strength, _), value in zip(shrunk, ratios, strict=True):
        found.setdefault(strength, []).append(value)
    for row in table:
        if row["mode"] == "shrink":
            row["step"] = geometric_ratio(np.array(found[row["strength"]]), np.ones(len(found[row["strength"]])))


def _finding(model: str, table: list[dict[str, Any]]) -> str:
    naive, shrunk = table[0], [row for row in table if row["mode"] == "shrink"]
    first, last = shrunk[0], shrunk[-1]
    free = [row for row in shrunk if row["loss"]["mean"] <= TOLERATED]
    sentences = [
        f"{model}: without pruning accuracy is {written(naive['accuracy'])} and a share of {written(naive['dead'])} of "
        f"the units is dead. With λ from {level(first['strength'])} to {level(last['strength'])} the share of pruned "
        f"units goes from {written(first['units'])} to {written(last['units'])}, and accuracy from "
        f"{written(first['accuracy'])} to {written(last['accuracy'])}."
    ]
    if free:
        best = max(free, key=lambda row: row["units"]["mean"])
        mask = next(row for row in table if (row["strength"], row["mode"]) == (best["strength"], "mask"))
        left = [f"{row['parameters']['mean']:.0f}" for row in (best, mask, naive)]
        sentences.append(
            f"The most that goes for at most {number(TOLERATED, 2)} of accuracy is at λ = {level(best['strength'])}: "
            f"{written(best['units'])} of the units and {written(best['weights'])} of the weights, for a loss of "
            f"{written(best['loss'], 3, sign=True)}; a training step then takes {written(best['step'], 2)} times as "
            f"long. Of {left[2]} parameters removal leaves {left[0]}, and masks {left[1]}."
        )
    else:
        sentences.append(f"Every λ that was tried costs more than {number(TOLERATED, 2)} of accuracy.")
    return " ".join(sentences)


STUDY = Study(
    name="demon-pruning",
    question="How many units can Demon pruning take away, and at what cost in accuracy?",
    source="the accuracy–sparsity front of Dufort-Labbé et al. 2024, arXiv 2403.07688; network and budget chosen here",
    columns=(
        Column("model", "network"),
        Column("strength", "λ"),
        Column("mode", "mode"),
        Column("accuracy", "test\naccuracy"),
        Column("loss", "loss against\nnaive", "difference on the same seeds"),
        Column("dead", "dead\nunits", "share of units in place that are 0 on all of a fixed probe, masked ones too"),
        Column("units", "pruned\nunits", "share of all units"),
        Column("weights", "pruned\nparameters", "share of all parameters"),
        Column("parameters", "parameters\nleft", digits=0),
        Column("time", "training\ntime", "over that of naive on the same seeds, of the processor", 2),
        Column("step", "step\ntime", "of a training step of the network that is left, over that of the whole one", 2),
    ),
    seeds=3,
    full_seeds=3,
    runs=runs,
    report=report,
    modules=("benchmarks.studies.networks",),
)
