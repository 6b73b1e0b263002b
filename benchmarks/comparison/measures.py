"""Measures of one run: of accuracy, from its accuracy matrix alone, and of what was done to its units."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ACCURACY_MEASURES = (
    "average_accuracy",
    "learning_accuracy",
    "late_learning_accuracy",
    "forgetting",
    "backward_transfer",
)
"""What `run_measures` returns, in its order."""

UNIT_MEASURES = ("dead_fraction", "dormant_fraction", "effective_rank")
"""What is measured on the hidden units of one run, at the end of the stream."""

FURTHER_MEASURES = (
    "average_online_accuracy",
    "forward_transfer",
    "dead_unit_area",
    "output_shift",
    "accuracy_damage",
    "treated_units",
    "sample_plasticity",
    "largest_hessian_eigenvalue",
    "gradient_effective_rank",
)
"""What else `result_measures` returns, in its order; early runs have not measured all of it."""

AT_THE_END = ("largest_hessian_eigenvalue", "gradient_effective_rank")
"""Of these, what is taken at the end of the stream from the last entry of `units`, where it was asked for."""


def as_accuracy_matrix(accuracy_matrix: Sequence[Sequence[float | None]] | np.ndarray) -> np.ndarray:
    """Turns rows of numbers and nulls into one array.

    Args:
        accuracy_matrix: T rows of T entries, each an accuracy from 0 to 1, or None or NaN where nothing was measured.

    Returns:
        Array of shape (T, T), float64, NaN where nothing was measured.

    Raises:
        ValueError: if the matrix is empty, is not square, or holds anything but accuracies.
    """
    size = len(accuracy_matrix)
    if size == 0:
        raise ValueError("accuracy_matrix is empty")
    matrix = np.full((size, size), np.nan)
    for i, row in enumerate(accuracy_matrix):
        if not isinstance(row, (Sequence, np.ndarray)) or isinstance(row, str) or len(row) != size:
            raise ValueError(f"accuracy_matrix[{i}] should be a list of {size} entries")
        for j, value in enumerate(row):
            if value is None:
                continue
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
                raise ValueError(f"accuracy_matrix[{i}][{j}] should be an accuracy from 0 to 1, not {value!r:.40}")
            if value < 0 or value > 1:
                raise ValueError(f"accuracy_matrix[{i}][{j}] should be an accuracy from 0 to 1, not {value!r:.40}")
            matrix[i, j] = value
    return matrix


def late_experiences(experiences: int) -> int:
    """How many experiences the last fifth of a stream has: ceil(T / 5).

    Args:
        experiences: T, the length of the stream.

    Returns:
        From 1 to T.
    """
    return -(-experiences // 5)


def run_measures(
    accuracy_matrix: Sequence[Sequence[float | None]] | np.ndarray, fresh: bool, sampled: bool = False
) -> dict[str, float | None]:
    """The accuracy measures of one run.

    R[i][j] is the test accuracy on experience j after training on experience i, for i and j in 0 … T − 1:

    - average_accuracy: mean over j of R[T−1][j];
    - learning_accuracy: mean over i of R[i][i];
    - late_learning_accuracy: mean of R[i][i] over the last ceil(T / 5) experiences;
    - forgetting: mean over j < T − 1 of (max of R[l][j] over l in j … T − 2) − R[T−1][j];
    - backward_transfer: mean over j < T − 1 of R[T−1][j] − R[j][j].

    The last two are None for T = 1, where nothing can be forgotten, and for `fresh`, whose networks never train twice.
    Entries above the diagonal are ignored. Where only some of the entries below it were measured, the max in forgetting
    is over these, so that forgetting comes out at most as large as it is.

    Args:
        accuracy_matrix: T rows of T accuracies from 0 to 1, None or NaN where nothing was measured. The diagonal and
            the last row are needed; unless `fresh` or `sampled`, all entries below the diagonal too.
        fresh: whether every experience had a new network.
        sampled: whether the network was tested on a sample of the earlier experiences.

    Returns:
        The measures by name, in the order of `ACCURACY_MEASURES`.

    Raises:
        ValueError: if the matrix is no square matrix of accuracies, or an entry that is needed is missing.

    Source:
        Forgetting: Chaudhry et al. 2018. Average accuracy and backward transfer: Lopez-Paz and Ranzato 2017.
    """
    matrix = as_accuracy_matrix(accuracy_matrix)
    size = len(matrix)
    needed = np.eye(size, dtype=bool) if fresh or sampled else np.tri(size, dtype=bool)
    needed[-1] = True
    missing = np.argwhere(needed & np.isnan(matrix))
    if len(missing):
        raise ValueError("accuracy_matrix[{}][{}] is missing".format(*missing[0]))

    learned, final = matrix.diagonal(), matrix[-1]
    forgetting = backward_transfer = None
    if size > 1 and not fresh:
        best = np.array([np.nanmax(matrix[j:-1, j]) for j in range(size - 1)])
        forgetting = float(np.mean(best - final[:-1]))
        backward_transfer = float(np.mean(final[:-1] - learned[:-1]))
    return {
        "average_accuracy": float(final.mean()),
        "learning_accuracy": float(learned.mean()),
        "late_learning_accuracy": float(learned[-late_experiences(size) :].mean()),
        "forgetting": forgetting,
        "backward_transfer": backward_transfer,
    }


def treated_units(
    treatments: Sequence[Mapping[str, Any]], hidden: Sequence[int], counted: bool, fresh: bool
) -> int | None:
    """How many hidden units were changed between two updates, summed over all interventions of a run.

    A unit counts each time. An intervention says which units it changed ("units") or how often it made units new
    ("recycled"); one that changes whole weights ("entries") changes every hidden unit, and so does a new network. What
    a method does besides, such as the penalty by which Demon pruning makes units die, is not counted.

    Args:
        treatments: What the plugins of the run report, with numbers of units by layer under "units".
        hidden: T entries, how many hidden units the network had after each experience.
        counted: Whether there is anything to count: False for strategies that only have a penalty, an optimizer or an
            architecture of their own, or that do not report.
        fresh: Whether every experience had a new network.

    Returns:
        The number; None unless `counted`, where an intervention does not say what it changed, and where a part of the
        strategy acts on all weights at every step ("steps") or puts another architecture in place
        ("frozen_parameters").

    Raises:
        ValueError: if an entry holds no number of units, or the number of an experience that there is not.
    """
    treatments = done(treatments)
    if not counted or any("steps" in entry or "frozen_parameters" in entry for entry in treatments):
        return None
    total = sum(hidden[1:]) if fresh else 0
    for index, entry in enumerate(treatments):
        if "entries" in entry:  # before the experience, on the network that the one before has left
            experience = entry.get("experience")
            if type(experience) is not int or not 0 <= experience < len(hidden):
                raise ValueError(f"treatments[{index}].experience should be from 0 to {len(hidden) - 1}")
            total += hidden[max(experience - 1, 0)]
            continue
        if "recycled" not in entry and "units" not in entry:
            return None
        numbers = [entry["recycled"]] if "recycled" in entry else entry["units"]
        if isinstance(numbers, Mapping):
            numbers = list(numbers.values())
        if not isinstance(numbers, list) or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"treatments[{index}] should say how many units it changed")
        total += sum(numbers)
    return total


def forward_transfer(before_learning: Sequence[float | None], untrained: Sequence[float | None]) -> float | None:
    """How much better experiences are solved before they are learned than by an untrained network.

    Mean over j in 1 … T − 1 of R[j−1][j] − b[j].

    Args:
        before_learning: T entries, R[j−1][j]: test accuracy on experience j just before training on it.
        untrained: T entries, b[j]: test accuracy of the untrained network.

    Returns:
        The mean, None for T = 1 and where an entry after the first is None: a network knows nothing of classes, or of
        a head, that it has not been trained on.

    Source:
        Lopez-Paz and Ranzato 2017, arXiv 1706.08840.
    """
    gains = [
        None if before is None or start is None else before - start
        for before, start in zip(before_learning[1:], untrained[1:], strict=True)
    ]
    return _mean(gains)


def result_measures(result: Mapping[str, Any], fresh: bool) -> dict[str, float | None]:
    """All measures of one run that its result alone gives.

    - those of `run_measures`;
    - dead_fraction, dormant_fraction, effective_rank: of the last entry of `units`;
    - average_online_accuracy: mean over experiences of `online_accuracy`, the mean accuracy of an experience's training
      mini-batches, each before the update for which it is used (Kumar et al. 2023, arXiv 2308.11958);
    - forward_transfer: see there;
    - dead_unit_area: the area under the curve of dead units over the stream, over its length: the mean over experiences
      of the dead fraction after each;
    - output_shift and accuracy_damage: mean over interventions of how far the network's outputs moved, and of how far
      its accuracy on earlier experiences fell; see `damage`;
    - treated_units: see there;
    - sample_plasticity: mean over experiences of that of their steps (Elsayed and Mahmood 2024, section 3); None unless
      it was asked for, as the following;
    - largest_hessian_eigenvalue, gradient_effective_rank: of the last entry of `units`.

    Measures of accuracy are over the experiences that are `scored`, where the run says which.

    Args:
        result: What result.json holds, its fields valid; those that early runs do not have may be absent.
        fresh: whether every experience had a new network.

    Returns:
        The measures by name; None where undefined.
    """
    units, size = result["units"], len(result["accuracy_matrix"])
    scored = result.get("scored", range(size))
    matrix = as_accuracy_matrix(result["accuracy_matrix"])[np.ix_(scored, scored)]
    hidden = [sum(layer["size"] for layer in entry["layers"].values()) for entry in units]
    treatments = result["treatments"]
    # Runs of before this field: naive does nothing, fresh's networks are known, others tell what they did.
    counted = result.get("counts_treated_units", bool(treatments) or fresh or result["strategy"] == "naive")

    def of_scored(name: str) -> list[float | None]:
        values = result.get(name, [None] * size)
        return [values[index] for index in scored]

    return {
        **run_measures(matrix, fresh, "evaluate" in result),
        **{name: units[-1].get(name) for name in UNIT_MEASURES},
        "average_online_accuracy": _mean(of_scored("online_accuracy")),
        "forward_transfer": forward_transfer(of_scored("accuracy_before_learning"), of_scored("untrained_accuracy")),
        "dead_unit_area": _mean([entry["dead_fraction"] for entry in units]),
        **damage(treatments),
        "treated_units": treated_units(treatments, hidden, counted, fresh),
        "sample_plasticity": _mean([entry.get("sample_plasticity") for entry in units]),
        **{name: units[-1].get(name) for name in AT_THE_END},
    }


def done(treatments: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the treatments that were given, without those of dry runs, and those withheld from a broken network."""
    return [entry for entry in treatments if not entry.get("dry_run") and "withheld" not in entry]


def damage(treatments: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What the interventions of a run cost at the moment, before any training.

    Args:
        treatments: What the plugins of the run report. "output_shift": how far the outputs on a probe moved, over their
            length; "accuracy_before" and "accuracy_after": on test samples of earlier experiences.

    Returns:
        "output_shift" and "accuracy_damage", the fall of that accuracy: means over the interventions that report them,
        None where none does.
    """
    treatments = done(treatments)
    falls = [entry["accuracy_before"] - entry["accuracy_after"] for entry in treatments if "accuracy_after" in entry]
    return {
        "output_shift": _mean([entry["output_shift"] for entry in treatments if "output_shift" in entry]),
        "accuracy_damage": _mean(falls),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined and len(defined) == len(values) else None
