"""Accuracy measures of one run, from its accuracy matrix alone."""

from collections.abc import Sequence

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
    accuracy_matrix: Sequence[Sequence[float | None]] | np.ndarray, fresh: bool
) -> dict[str, float | None]:
    """The accuracy measures of one run.

    R[i][j] is the test accuracy on experience j after training on experience i, for i and j in 0 … T − 1:

    - average_accuracy: mean over j of R[T−1][j];
    - learning_accuracy: mean over i of R[i][i];
    - late_learning_accuracy: mean of R[i][i] over the last ceil(T / 5) experiences;
    - forgetting: mean over j < T − 1 of (max of R[l][j] over l in j … T − 2) − R[T−1][j];
    - backward_transfer: mean over j < T − 1 of R[T−1][j] − R[j][j].

    The last two are None for T = 1, where nothing can be forgotten, and for `fresh`, whose networks never train twice.
    Entries above the diagonal are ignored.

    Args:
        accuracy_matrix: T rows of T accuracies from 0 to 1, None or NaN where nothing was measured. The diagonal and
            the last row are needed; unless `fresh`, all entries below the diagonal too.
        fresh: whether every experience had a new network.

    Returns:
        The measures by name, in the order of `ACCURACY_MEASURES`.

    Raises:
        ValueError: if the matrix is no square matrix of accuracies, or an entry that is needed is missing.

    Source:
        Forgetting: Chaudhry et al. 2018. Average accuracy and backward transfer: Lopez-Paz and Ranzato 2017.
    """
    matrix = as_accuracy_matrix(accuracy_matrix)
    size = len(matrix)
    needed = np.eye(size, dtype=bool) if fresh else np.tri(size, dtype=bool)
    needed[-1] = True
    missing = np.argwhere(needed & np.isnan(matrix))
    if len(missing):
        raise ValueError("accuracy_matrix[{}][{}] is missing".format(*missing[0]))

    learned, final = matrix.diagonal(), matrix[-1]
    forgetting = backward_transfer = None
    if size > 1 and not fresh:
        best = np.array([matrix[j:-1, j].max() for j in range(size - 1)])
        forgetting = float(np.mean(best - final[:-1]))
        backward_transfer = float(np.mean(final[:-1] - learned[:-1]))
    return {
        "average_accuracy": float(final.mean()),
        "learning_accuracy": float(learned.mean()),
        "late_learning_accuracy": float(learned[-late_experiences(size) :].mean()),
        "forgetting": forgetting,
        "backward_transfer": backward_transfer,
    }
