"""Statistics of units, unit by unit, in Python's own numbers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from plasticity import find_units, watch


class Slow:
    """Statistics of one group, unit by unit, in Python's own numbers."""

    def __init__(self, size):
        self.size, self.seen = size, []

    def add(self, h, dim):
        array = np.moveaxis(h.detach().double().numpy(), dim, 0)
        self.seen.append(array.reshape(self.size, -1))  # equal runs of the dimension are one unit

    def check(self, found):
        values = np.concatenate(self.seen, axis=1)
        assert found.fired.dtype == torch.int64
        assert found.mean.dtype == found.mean_abs.dtype == torch.float64
        assert isinstance(found.count, int)
        assert found.count == values.shape[1]
        for unit in range(self.size):
            assert int(found.fired[unit]) == sum(1 for value in values[unit] if value > 0)
            mean = math.fsum(values[unit]) / found.count
            mean_abs = math.fsum(abs(value) for value in values[unit]) / found.count
            # A CPU adds up one call's activations in their own precision.
            assert float(found.mean[unit]) == pytest.approx(mean, rel=1e-12, abs=1e-6 * mean_abs + 1e-14)
            assert float(found.mean_abs[unit]) == pytest.approx(mean_abs, rel=1e-6, abs=1e-14)


def compare(model, batches, references):
    """Watch some batches; `references` computes the activations of each group, (tensor, unit dimension) by name."""
    units = find_units(model, batches[0])
    slow = {group.name: Slow(group.size) for group in units}
    with watch(model, units) as activity:
        for batch in batches:
            model(batch)
            # Outside of a forward pass of the model, so that what the reference runs is not counted.
            for name, (h, dim) in references(model, batch).items():
                slow[name].add(h, dim)
    found = activity.statistics()
    assert set(found) == set(slow)
    for name, statistics in found.items():
        slow[name].check(statistics)


def mlp():
    """Make a model of two groups, "0" of 5 units and "2" of 6."""
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))


def counts(activity):
    """Return how many observations were counted, group by group."""
    return [each.count for each in activity.statistics().values()]


def hooks(model):
    """Count the hooks of every kind on every module, and what stands in for its call."""
    kinds = [name for name in vars(model) if "hooks" in name and isinstance(vars(model)[name], dict)]
    assert len(kinds) > 5
    found = [len(vars(module)[kind]) for module in model.modules() for kind in kinds]
    return [*found, *("_compiled_call_impl" in vars(module) for module in model.modules())]
