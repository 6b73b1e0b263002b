"""Removed weights stay exactly 0, whatever trains the network, grows it, saves it or copies it."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plasticity import find_units, watch
from plasticity.errors import UserError
from plasticity.probe import RecentInputs
from plasticity.surgery.masks import Masks

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
}


def network():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 8), nn.ReLU(), nn.Linear(8, 3))


def step(model, optimizer, masks=None, seed=0):
    x = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    if masks is not None:
        masks.mask_gradients(model)
    optimizer.step()
    if masks is not None:
        masks.apply(model)


def some(model, name, share=0.4):
    """Choose some weights of a layer to remove."""
    weight = model.get_submodule(name).weight
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(len(name))) < share


class Multiplied(nn.Module):
    """The same network with its masks in the forward pass, and raw weights behind them."""

    def __init__(self, model, removed):
        super().__init__()
        self.model, self.removed = copy.deepcopy(model), removed

    def forward(self, x):
        conv, first, second = self.model[0], self.model[3], self.model[5]
        h = F.relu(F.conv2d(x, conv.weight * ~self.removed["0"], conv.bias)).flatten(1)
        h = F.relu(F.linear(h, first.weight * ~self.removed["3"], first.bias))
        return second(h)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_removed_weights_stay_zero_and_the_others_train_as_if_masked_in_the_forward_pass(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    for seed in range(5):  # momentum to be got rid of
        step(model, optimizer, seed=seed)
    removed = {layer: some(model, layer) for layer in ("0", "3")}
    masks = Masks()
    for layer, where in removed.items():
        masks.remove(model, layer, where, optimizer)
    reference = Multiplied(model, removed)
    other = OPTIMIZERS[name](reference.model.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(20):
        step(model, optimizer, masks, seed)
        step(reference, other, seed=seed)
        for layer, where in removed.items():
            weight = model.get_submodule(layer).weight
            assert (weight[where] == 0).all()
            assert (weight[~where] != 0).all()
            torch.testing.assert_close(weight[~where], reference.model.get_submodule(layer).weight[~where])
            for entry in optimizer.state[weight].values():
                if isinstance(entry, torch.Tensor) and entry.shape == weight.shape:
                    assert (entry[where] == 0).all()
    torch.testing.assert_close(model[5].weight, reference.model[5].weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_removed_weights_stay_zero_without_masked_gradients_and_clean_state_too(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    step(model, optimizer)
    masks, where = Masks(), some(model, "3")
    masks.remove(model, "3", where)
    for seed in range(5):
        step(model, optimizer, seed=seed)
        assert (model[3].weight[where] != 0).any()  # the optimizer moves them
        masks.apply(model)
        assert (model[3].weight[where] == 0).all()


def test_removal_cleans_the_optimizer_at_these_weights_alone():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    before, weights = copy.deepcopy(optimizer.state_dict()["state"]), copy.deepcopy(model.state_dict())
    masks, where = Masks(), some(model, "3")
    masks.remove(model, "3", where, optimizer)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        gone = where if name == "3.weight" else torch.zeros_like(parameter, dtype=torch.bool)
        assert torch.equal(parameter, weights[name].masked_fill(gone, 0))
        state = optimizer.state[parameter]
        assert torch.equal(state["step"], before[number]["step"])
        for key in "exp_avg", "exp_avg_sq":
            assert torch.equal(state[key], before[number][key].masked_fill(gone, 0))


def test_masks_add_up_and_are_counted():
    model, masks = network(), Masks()
    assert (len(masks), masks.removed(), masks.removed_fraction()) == (0, 0, 0.0)
    masks.apply(model)
    masks.mask_gradients(model)
    first, second = torch.zeros(8, 64, dtype=torch.bool), torch.zeros(8, 64, dtype=torch.bool)
    first[0], second[:, 0] = True, True
    masks.remove(model, "3", first)
    masks.remove(model, "3", second)
    assert torch.equal(masks.kept(model, "3"), ~(first | second))
    assert masks.removed() == 64 + 8 - 1
    assert masks.removed_fraction() == pytest.approx(71 / 512)
    assert masks.kept(model, "0").all()
    assert list(masks) == ["3"]
    assert "3" in masks
    assert "0" not in masks
    masks.remove(model, "5", torch.ones(3, 8, dtype=torch.bool))
    assert masks.removed_fraction() == pytest.approx((71 + 24) / (512 + 24))


def test_a_network_on_which_they_were_never_applied_is_told_apart():
    model, masks = network(), Masks()
    assert not masks.disturbed(model)
    masks.remove(model, "3", some(model, "3"))
    assert not masks.disturbed(model)
    assert not masks.disturbed(copy.deepcopy(model))
    assert masks.disturbed(network())


# Growth


@pytest.mark.parametrize(("rows", "columns"), [(8, 70), (11, 64), (11, 70)])
def test_masks_follow_a_layer_that_grows(rows, columns):
    model, masks = network(), Masks()
    where = some(model, "3")
    masks.remove(model, "3", where)
    old = model[3].weight.detach()
    model[3] = nn.Linear(columns, rows)
    nn.init.ones_(model[3].weight)
    masks.apply(model)
    assert torch.equal(model[3].weight[:8, :64] == 0, where)
    assert (model[3].weight[8:] == 1).all()
    assert (model[3].weight[:, 64:] == 1).all()
    assert masks.removed() == int(where.sum())
    more = torch.zeros(rows, columns, dtype=torch.bool)
    more[-1] = True
    masks.remove(model, "3", more)
    assert (model[3].weight[-1] == 0).all()
    assert (old[~where] != 0).all()


@pytest.mark.parametrize("layer", [nn.Linear(60, 8), nn.Linear(64, 7), nn.Conv1d(64, 8, 1)], ids=str)
def test_masks_do_not_follow_a_layer_that_shrinks_or_changes_kind(layer):
    model, masks = network(), Masks()
    masks.remove(model, "3", some(model, "3"))
    model[3] = layer
    with pytest.raises(UserError, match="layer '3'") as error:
        masks.apply(model)
    assert "\n" not in str(error.value)


# Missing and unfit layers


def test_layers_that_are_gone():
    model, masks = network(), Masks()
    masks.remove(model, "3", some(model, "3"))
    masks.remove(model, "5", some(model, "5"))
    model = model[:4]
    with pytest.raises(UserError, match="no layer '5'"):
        masks.apply(model)
    masks.prune_missing(model)
    assert list(masks) == ["3"]
    masks.apply(model)
    with pytest.raises(UserError, match="'1' is a ReLU"):
        masks.remove(model, "1", torch.ones(1, dtype=torch.bool))


def test_weights_computed_from_others_are_refused():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(UserError, match="weight of layer '0'"):
        Masks().remove(model, "0", torch.ones(3, 4, dtype=torch.bool))


def test_wrappers_are_looked_through():
    model, masks = network(), Masks()
    where = some(model, "3")
    masks.remove(nn.DataParallel(model), "3", where)
    nn.init.ones_(model[3].weight)
    masks.prune_missing(nn.DataParallel(model))
    masks.apply(nn.DataParallel(model))
    assert torch.equal(model[3].weight == 0, where)


# State


def test_state_round_trip():
    model, masks = network(), Masks()
    masks.remove(model, "0", some(model, "0"))
    masks.remove(model, "3", some(model, "3"))
    buffer = io.BytesIO()
    torch.save(masks.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    restored = Masks()
    restored.load_state_dict(state)
    assert list(restored) == ["0", "3"]
    for name in masks:
        assert torch.equal(restored.kept(model, name), masks.kept(model, name))
    state["3"].fill_(False)  # the state is a copy both ways
    masks.state_dict()["3"].fill_(False)
    assert masks.kept(model, "3").any()
    assert restored.kept(model, "3").any()
    restored.load_state_dict({})
    assert len(restored) == 0


# No host sync


def test_a_watched_and_masked_training_step_never_waits_for_the_device():
    model = network()
    masks = Masks()
    for name in "0", "3":
        masks.remove(model, name, some(model, name))
    units = find_units(model, torch.randn(2, 2, 6, 6))
    model = model.to("meta")  # has no values: whatever asks for one raises
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    recent = RecentInputs(20)
    with watch(model, units, inputs=True, features=8) as activity:
        for _ in range(3):
            x = torch.randn(8, 2, 6, 6, device="meta")
            optimizer.zero_grad()
            model(x).square().mean().backward()
            masks.mask_gradients(model)
            optimizer.step()
            masks.apply(model)
            recent.add((x,))
    assert activity.statistics()["3"].count == 24
    assert recent.probe().samples == 20
    with pytest.raises(RuntimeError):
        float(model[3].weight.detach().sum())
    where = torch.zeros(8, 64, dtype=torch.bool, device="meta")
    masks.remove(model, "3", where, optimizer)
