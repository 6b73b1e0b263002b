"""How measures are called, defined and written as numbers, for every output that people read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.comparison.statistics import Interval

NOTE = "± and [low, high]: 95% interval over seeds. A dash: undefined."
"""What the cells of a table mean."""


DIVERGED = "Diverged: the network or its loss was NaN or infinite after an experience; accuracies are as measured."
"""What it means that a run has diverged."""


def diverged_runs(count: int, runs: int) -> str:
    """Say how many of some runs have diverged; nothing if none has.

    Args:
        count: how many have.
        runs: how many there are.
    """
    return f"{count} of {runs} diverged" if count else ""


def diverged(row: Mapping[str, Any]) -> str:
    """The same of a strategy.

    Args:
        row: its row of a comparison.
    """
    return diverged_runs(row["diverged"], row["seeds"]) if "diverged" in row else ""


@dataclass(frozen=True)
class Measure:
    """How one measure is shown.

    Attributes:
        label: its name in a sentence or a table.
        header: the same on two short lines, for narrow columns.
        digits: decimals to show.
        definition: what it is, in one sentence.
    """

    label: str
    header: str
    digits: int
    definition: str


WORDING = {
    "average_accuracy": Measure(
        "average accuracy",
        "average\naccuracy",
        3,
        "Test accuracy over all experiences at the end of the stream; for fresh, that of its last network.",
    ),
    "average_online_accuracy": Measure(
        "average online accuracy",
        "online\naccuracy",
        3,
        "Accuracy on training mini-batches just before the update they are used for, averaged over an experience, then "
        "over the stream. Dropout is on, and replayed samples count.",
    ),
    "learning_accuracy": Measure(
        "learning accuracy",
        "learning\naccuracy",
        3,
        "Test accuracy on each experience just after learning it, averaged over the stream.",
    ),
    "late_learning_accuracy": Measure(
        "late learning accuracy",
        "late\nlearning",
        3,
        "The same over the last fifth of the stream, rounded up: what the network can still learn.",
    ),
    "difference_from_naive": Measure(
        "difference from naive",
        "from\nnaive",
        3,
        "Late learning accuracy minus that of naive: the mean of paired differences over the same seeds.",
    ),
    "trainability_gap": Measure(
        "trainability gap",
        "train.\ngap",
        3,
        "How far late learning accuracy lies below that of fresh, which has the same budget: the mean of paired "
        "differences over the same seeds.",
    ),
    "plasticity_ratio": Measure(
        "plasticity ratio",
        "plasticity\nratio",
        2,
        "Late learning accuracy over that of fresh on the same seeds: a ratio of means.",
    ),
    "recovery": Measure(
        "recovery",
        "\nrecovery",
        2,
        "How much of what naive lost against fresh in late learning accuracy a strategy wins back: 0 is naive, 1 is "
        "fresh. (strategy − naive) / (fresh − naive), a ratio of means over the same seeds; undefined unless the 95% "
        "interval of fresh − naive leaves zero out.",
    ),
    "forgetting": Measure(
        "forgetting",
        "forget-\nting",
        3,
        "How far accuracy on an experience fell at the end from its best before, averaged over all but the last "
        "experience (Chaudhry et al. 2018).",
    ),
    "backward_transfer": Measure(
        "backward transfer",
        "backward\ntransfer",
        3,
        "Accuracy at the end minus accuracy just after learning, averaged over all but the last experience "
        "(Lopez-Paz and Ranzato 2017).",
    ),
    "forward_transfer": Measure(
        "forward transfer",
        "forward\ntransfer",
        3,
        "Accuracy on an experience just before learning it, minus that of the untrained network, averaged over all but "
        "the first (Lopez-Paz and Ranzato 2017). Undefined where experiences bring new classes or heads.",
    ),
    "dead_fraction": Measure(
        "dead units",
        "dead\nunits",
        3,
        "Share of hidden units that are never active on a fixed probe of training samples, at the end of the stream.",
    ),
    "dead_unit_area": Measure(
        "dead units over the stream",
        "dead\narea",
        3,
        "The area under the curve of dead units, over its length: their mean share after each experience.",
    ),
    "dormant_fraction": Measure(
        "dormant units",
        "dormant\nunits",
        3,
        "Share of hidden units whose mean activity is a small fraction of their layer's, on the same probe.",
    ),
    "effective_rank": Measure(
        "effective rank",
        "eff.\nrank",
        1,
        "How many directions the last hidden representation of the probe spreads over: the exponential of the entropy "
        "of its singular values.",
    ),
    "output_shift": Measure(
        "output shift",
        "output\nshift",
        3,
        "How far an intervention moves the network’s outputs on training samples, in units of their length, averaged "
        "over interventions.",
    ),
    "accuracy_damage": Measure(
        "accuracy damage",
        "acc.\ndamage",
        3,
        "How far an intervention lowers test accuracy on earlier experiences at the moment, before any training, "
        "averaged over interventions.",
    ),
    "treated_units": Measure(
        "treated units",
        "treated\nunits",
        0,
        "How many hidden units were changed between two updates, summed over all interventions; a unit counts each "
        "time. All units count where whole weights are changed, and in a new network. Undefined for what acts on all "
        "weights at every step (penalties, optimizers, noise), for other architectures, and where nothing is reported.",
    ),
    "sample_plasticity": Measure(
        "sample plasticity",
        "sample\nplasticity",
        3,
        "The share of a mini-batch’s loss that its own step takes away, 0 where it does not help, averaged over steps "
        "and experiences (Elsayed and Mahmood 2024); measured on request.",
    ),
    "largest_hessian_eigenvalue": Measure(
        "largest Hessian eigenvalue",
        "sharp-\nness",
        1,
        "Of the loss on training samples of the last experience, at the end of the stream; measured on request.",
    ),
    "gradient_effective_rank": Measure(
        "effective rank of gradients",
        "gradient\nrank",
        1,
        "How many directions the gradients of single samples spread over, at the end of the stream: the effective rank "
        "of their Gram matrix; measured on request.",
    ),
    "relative_time": Measure(
        "time relative to naive",
        "relative\ntime",
        2,
        "Time of training over that of naive on the same seeds, evaluation left out: the processor’s time where all "
        "runs were trained on one, else the clock’s. A geometric mean of ratios.",
    ),
    "seconds": Measure("seconds", "\nseconds", 1, "Time of training, evaluation left out."),
}

RATIOS = ("plasticity_ratio", "recovery", "relative_time")
"""Measures whose interval is not symmetric about the estimate."""


def cell(measure: str, interval: Interval) -> tuple[str, str]:
    """One cell of a table.

    Args:
        measure: name of the measure.
        interval: the estimate and its interval.

    Returns:
        The estimate ("–" where undefined) and its interval ("±0.012" or "[0.70, 0.86]", empty where undefined).
    """
    mean, low, high = interval["mean"], interval["low"], interval["high"]
    digits = WORDING[measure].digits
    if mean is None:
        return "–", ""
    if measure == "seconds" and mean >= 100:
        digits = 0
    if low is None or high is None:
        return plain_number(mean, digits), ""
    if measure in RATIOS:
        return plain_number(mean, digits), f"[{plain_number(low, digits)}, {plain_number(high, digits)}]"
    return plain_number(mean, digits), "±" + plain_number((high - low) / 2, digits)


def plain_number(value: float, digits: int) -> str:
    """A number as people write it: never "-0.0".

    Args:
        value: any finite number.
        digits: decimals.

    Returns:
        The number in fixed notation.
    """
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text
