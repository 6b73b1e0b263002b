"""Accuracies out of what Avalanche's evaluation returns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plasticity.errors import UserError


def learning_accuracies(results: Sequence[Mapping[str, Any]], metric: str = "Top1_Acc_Exp") -> list[float]:
    """Return the accuracy on each experience just after training on it, for `plasticity.measures.trainability_gap`.

        results, scratch = [], []
        for experience in benchmark.train_stream:
            strategy.train(experience)
            results.append(strategy.eval(benchmark.test_stream))
            fresh = make_strategy()  # a new network, with the same budget
            fresh.train(experience)
            scratch.append(fresh.eval(benchmark.test_stream))
        gap = trainability_gap(learning_accuracies(results), learning_accuracies(scratch))

    Args:
        results: Entry i is what `strategy.eval` returned after training on experience i, with a value for that
            experience in it: `accuracy_metrics(experience=True)` has to be among the metrics.
        metric: Name of the metric of one experience.

    Returns:
        One number for each experience.

    Raises:
        UserError: If an entry has no value, or several, for its experience.
    """
    found = []
    for index, result in enumerate(results):
        pattern = re.compile(rf"{re.escape(metric)}/eval_phase/.*/Exp0*{index}")
        values = [value for name, value in result.items() if pattern.fullmatch(name)]
        if len(values) != 1:
            there = "no value" if not values else f"{len(values)} values"
            raise UserError(f"results[{index}] has {there} named {metric}/eval_phase/.../Exp{index:03d}")
        found.append(float(values[0]))
    return found
