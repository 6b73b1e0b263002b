"""Synaptic stripping where the inputs of a layer cannot be seen, or a normaliser hides what it writes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from plasticity import find_units
from plasticity.errors import UserError
from plasticity.methods.synaptic_stripping import PRESETS, StrippingRule, strip_dead_units
from plasticity.probe import Probe
from plasticity.surgery.masks import Masks


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


@pytest.mark.parametrize("guard", [True, False])
def test_behind_a_scale_of_0_nothing_is_removed(guard):
    """Whatever goes, the unit stays dead: its normaliser hides the row."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[1].weight[:4] = torch.tensor([0.0, 0.5, -0.5, 0.0])
        model[1].running_mean[:4] = 50.0 * model[1].weight[:4].sign()
        model[1].bias.zero_()
    before = model[0].weight.detach().clone()
    masks, probe = Masks(), Probe([(torch.rand(64, 6),)])
    rule = StrippingRule(guard=guard, rounds=3)
    report = strip_dead_units(model, find_units(model, torch.rand(2, 6)), probe, masks, rule)
    assert report.counts["dead"] >= 4
    removed = ~masks.kept(model, "0")
    assert not removed[[0, 3]].any() and torch.equal(model[0].weight[[0, 3]], before[[0, 3]])
    assert removed[1].any() and removed[2].any()
    if guard:
        assert (before[1][removed[1]] < 0).all() and (before[2][removed[2]] > 0).all()
