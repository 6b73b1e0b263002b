"""Which parameters count, and their initial values when heads grow and networks change."""

import copy
import pickle

import pytest
import torch
from avalanche.models import IncrementalClassifier
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from plasticity.methods.parameters import InitialValues, as_matrices, from_matrices, grown, trainable


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.embedding = nn.Embedding(3, 4)
        self.attention = nn.MultiheadAttention(4, 2, kdim=3)
        self.norm = nn.LayerNorm(4)
        self.conv = nn.Conv1d(4, 4, 3, groups=2)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.recurrent = nn.GRU(4, 2)
        self.slope = nn.PReLU()
        self.computed = weight_norm(nn.Linear(4, 4))
        self.tied = nn.Linear(4, 3, bias=False)
        self.tied.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.lazy = nn.LazyLinear(3)


def test_every_parameter_has_a_kind_and_counts_once():
    model = Mixed()
    kinds = {entry.name: entry.kind for entry in trainable(model)}
    assert kinds == {
        "token": "other",
        "embedding.weight": "other",
        "attention.q_proj_weight": "weight",
        "attention.k_proj_weight": "weight",
        "attention.v_proj_weight": "weight",
        "attention.in_proj_bias": "bias",
        "attention.out_proj.weight": "weight",
        "attention.out_proj.bias": "bias",
        "norm.weight": "norm",
        "norm.bias": "norm",
        "conv.weight": "weight",
        "conv.bias": "bias",
        "up.weight": "weight",
        "up.bias": "bias",
        "recurrent.weight_ih_l0": "weight",
        "recurrent.weight_hh_l0": "weight",
        "recurrent.bias_ih_l0": "bias",
        "recurrent.bias_hh_l0": "bias",
        "slope.weight": "other",
        "computed.bias": "bias",
        "computed.parametrizations.weight.original0": "other",
        "computed.parametrizations.weight.original1": "other",
    }
    for entry in trainable(model, ("weight", "other")):
        assert entry.parameter is dict(model.named_parameters())[entry.name]
        assert entry.kind in ("weight", "other")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (1, 1, 3, 5)),
        (nn.Conv2d(4, 6, (2, 3)), (6, 1, 6, 4)),
        (nn.Conv1d(4, 6, 3, groups=2), (3, 2, 3, 2)),
        (nn.ConvTranspose2d(4, 6, 2), (4, 1, 6, 4)),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, nn.Module) else "",
)
def test_matrices_are_the_maps_a_weight_applies(layer, shape):
    entry = trainable(layer, ("weight",))[0]
    matrices = as_matrices(entry)
    assert matrices.shape == shape
    assert torch.equal(from_matrices(entry, matrices), layer.weight)
    if isinstance(layer, nn.ConvTranspose2d):
        assert torch.equal(matrices[1, 0], layer.weight[:, :, 0, 1].T)
    elif isinstance(layer, nn.Conv2d):
        assert torch.equal(matrices[4, 0], layer.weight[:, :, 1, 1])
    elif isinstance(layer, nn.Conv1d):
        assert torch.equal(matrices[2, 1], layer.weight[3:, :, 2])


def test_initial_values_grow_with_a_head_and_follow_nothing():
    model = nn.Sequential(nn.Linear(3, 4), IncrementalClassifier(4, initial_out_features=2))
    initial = InitialValues()
    initial.update(model)
    begin = {name: value.clone() for name, value in initial.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    old = model[1].classifier
    model[1].classifier = nn.Linear(4, 5)
    with torch.no_grad():
        model[1].classifier.weight[:2] = old.weight
    initial.update(model)
    assert torch.equal(initial["0.weight"], begin["0.weight"])
    name = "1.classifier.weight"
    assert torch.equal(initial[name][:2], begin[name])
    assert torch.equal(initial[name][2:], model[1].classifier.weight[2:])
    model[1] = nn.Identity()
    initial.update(model)
    assert set(initial) == {"0.weight", "0.bias"}


def test_initial_values_start_anew_with_another_network_but_not_with_a_restored_one():
    model, initial = nn.Linear(3, 2), InitialValues()
    initial.update(model)
    begin = initial["weight"].clone()
    restored, loaded = pickle.loads(pickle.dumps(initial)), InitialValues()
    loaded.load_state_dict(initial.state_dict())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight.mul_(2)
    for values, kept in ((initial, False), (restored, True), (loaded, True)):
        values.update(other)
        assert torch.equal(values["weight"], begin) == kept
        assert torch.equal(values["weight"], other.weight) != kept


def test_what_shrinks_starts_anew():
    now = torch.randn(3, 4)
    for before in (torch.zeros(5, 4), torch.zeros(2, 6), torch.zeros(3), None):
        values = grown(before, now)
        assert torch.equal(values, now) and values.data_ptr() != now.data_ptr()
    assert grown(torch.zeros(2, 4), now)[:2].eq(0).all()
