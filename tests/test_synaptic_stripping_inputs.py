"""Synaptic stripping where the inputs of a layer cannot be seen."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from plasticity import find_units
from plasticity.errors import UserError
from plasticity.masks import Masks
from plasticity.methods.synaptic_stripping import PRESETS, strip_dead_units
from plasticity.probe import Probe


def test_a_layer_that_is_not_called_is_stripped_by_weight_or_refused_in_words():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.b(torch.relu(nn.functional.linear(x, self.a.weight, self.a.bias)))

    model, x = Functional(), torch.rand(20, 4)
    with torch.no_grad():
        model.a.weight[0] = -1
        model.a.bias.fill_(0.5)
    units, probe = find_units(model, x), Probe([(x,)])
    with pytest.raises(UserError, match="cannot be seen"):
        strip_dead_units(model, units, probe, Masks())
    rule = replace(PRESETS["default"], score="signed_weight")
    report = strip_dead_units(model, units, probe, Masks(), rule)
    assert report.counts["dead"] == report.counts["revived"] == 1
