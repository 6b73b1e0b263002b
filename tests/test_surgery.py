"""Silencing and reinitialising single units: exactly the weights meant, from the layer's own distribution."""

import copy

import numpy as np
import pytest
import torch
from reset_cases import NETS, UNITS, incoming_by_hand, outgoing_by_hand, snapshot
from torch import nn

from plasticity import UnitGroup, find_units
from plasticity.errors import UserError
from plasticity.surgery import reinitialise, silence, units_index
from plasticity.surgery.masks import Masks


@pytest.fixture(params=NETS, ids=str)
def case(request):
    net = NETS[request.param]
    model = net.build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias), nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(net.shape)
    return net, model.eval(), x, find_units(model, x)[net.group]


def kill(net, model, group):
    """Make UNITS dead for any input."""
    with torch.no_grad():
        if group.norm:
            model.get_submodule(group.norm).bias[UNITS] = -1e4
            model.get_submodule(group.norm).weight[UNITS] = 0.1
        else:
            model.get_submodule(net.group).bias[UNITS] = -1e4


def test_silence_zeroes_the_outgoing_weights_and_nothing_else(case):
    net, model, x, group = case
    before, expected = snapshot(model), outgoing_by_hand(net, model)
    silence(model, group, UNITS)
    for name, tensor in model.state_dict().items():
        where = expected.get(name, torch.zeros_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor, torch.where(where, torch.zeros_like(tensor), before[name])), name
    assert any(bool((before[name][where] != 0).all()) for name, where in expected.items())


def test_silenced_units_have_no_say(case):
    net, model, x, group = case
    silence(model, group, UNITS)
    quiet = model(x)
    with torch.no_grad():
        for name, where in incoming_by_hand(net, model).items():
            if "running" not in name:
                tensor = model.get_parameter(name)
                tensor.copy_(torch.where(where, torch.randn_like(tensor), tensor))
    assert torch.equal(model(x), quiet)


def test_silence_cleans_momentum(case):
    net, model, x, group = case
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).square().mean().backward()
    optimizer.step()
    before = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    silence(model, group, UNITS, optimizer)
    for name, where in outgoing_by_hand(net, model).items():
        after = optimizer.state[model.get_parameter(name)]["momentum_buffer"]
        assert torch.equal(after, before[name].masked_fill(where, 0))


def test_reinitialise_changes_incoming_and_outgoing_weights_and_nothing_else(case):
    net, model, x, group = case
    before, parameters = snapshot(model), dict(model.named_parameters())
    outgoing, incoming = outgoing_by_hand(net, model), incoming_by_hand(net, model)
    reinitialise(model, group, UNITS)
    for name, tensor in model.state_dict().items():
        if name in outgoing:
            assert torch.equal(tensor, before[name].masked_fill(outgoing[name], 0)), name
        elif name in incoming:
            where = incoming[name]
            assert torch.equal(tensor[~where], before[name][~where]), name
            assert (tensor[where] != before[name][where]).all(), name
        else:
            assert torch.equal(tensor, before[name]), name
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    if group.norm:
        norm = model.get_submodule(group.norm)
        for tensor, value in (norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1):
            assert (tensor[UNITS] == value).all()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_reinitialising_dead_units_leaves_the_outputs_bit_equal_and_wakes_them(case, training):
    net, model, x, group = case
    kill(net, model, group)
    model.train(training)
    before = model(x)
    reinitialise(model, group, UNITS)
    assert torch.equal(model(x), before)
    activations = []
    handle = model.get_submodule(next(iter(net.readers(0)))).register_forward_pre_hook(
        lambda module, args: activations.append(args[0])
    )
    model(torch.randn(200, *net.shape[1:]))
    handle.remove()
    seen = activations[0].movedim(1, 0).reshape(group.size, -1)[UNITS]
    assert (seen > 0).any(1).all()


# Where fresh weights come from


class Constant(nn.Linear):
    """A layer with an initial distribution of its own, and more than a weight and a bias to initialise."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.full((3,), 5.0))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        return super().forward(x) * self.scale[0]

    def reset_parameters(self):
        with torch.no_grad():
            self.weight.normal_(0.7, 1e-3)
            self.bias.fill_(0.25)
            if hasattr(self, "scale"):
                self.scale.zero_()
                self.calls += 1


def wide(layer):
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(400, 2))
    return model, find_units(model, torch.randn(2, 64))["0"]


def test_fresh_weights_follow_pytorchs_initialisation_of_the_layer():
    model, group = wide(nn.Linear(64, 400))
    nn.init.constant_(model[0].weight, 9.0)
    reinitialise(model, group, range(400))
    bound = 1 / 64**0.5  # of nn.Linear and of its bias
    for tensor in model[0].weight, model[0].bias:
        assert tensor.abs().max() <= bound
        assert tensor.abs().max() > 0.97 * bound
        assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert model[0].weight.mean().abs() < 0.05 * bound


def test_fresh_weights_follow_the_layers_own_reset_which_changes_nothing_else():
    model, group = wide(Constant(64, 400))
    with torch.no_grad():
        model[0].weight.fill_(9), model[0].bias.fill_(9)
    reinitialise(model, group, [3])
    assert (model[0].weight[3] - 0.7).abs().max() < 0.01
    assert model[0].weight[3].std() > 0
    assert model[0].bias[3] == 0.25
    assert (model[0].weight[[0, 1, 2, 4]] == 9).all()
    assert (model[0].scale == 5).all()
    assert model[0].calls == 0


def test_fresh_weights_are_drawn_from_the_initial_values_where_they_are_known():
    model, group = wide(Constant(64, 400))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(400, 64).sign() * 3)
        model[0].bias.copy_(torch.arange(400.0))
    initial = snapshot(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    reinitialise(model, group, range(400), initial=initial)
    assert set(model[0].weight.unique().tolist()) == {-3.0, 3.0}
    assert abs(model[0].weight.mean().item()) < 0.1
    assert set(model[0].bias.tolist()) <= set(range(400))
    assert len(model[0].bias.unique()) > 200  # drawn anew, not restored
    assert not torch.equal(model[0].weight, initial["0.weight"])


def test_a_normaliser_starts_as_it_did_at_first():
    net = NETS["batch norm"]
    model = net.build()
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(6.0) + 2)
    initial = snapshot(model)
    group = find_units(model, torch.randn(net.shape))["0"]
    with torch.no_grad():
        model[1].weight.fill_(-1)
    reinitialise(model, group, UNITS, initial=initial)
    assert model[1].weight.tolist() == [-1, 3, -1, 5, -1, -1]


@pytest.mark.parametrize("known", [False, True], ids=["reset_parameters", "initial"])
def test_a_generator_makes_it_reproducible_and_spares_the_global_random_state(known):
    model, group = wide(nn.Linear(64, 400))
    initial = snapshot(model) if known else None
    twin, other = copy.deepcopy(model), copy.deepcopy(model)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(5)
    reinitialise(model, group, UNITS, generator=generator, initial=initial)
    reinitialise(twin, group, UNITS, generator=torch.Generator().manual_seed(5), initial=initial)
    reinitialise(other, group, UNITS, generator=torch.Generator().manual_seed(6), initial=initial)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[0].weight, twin[0].weight)
    assert torch.equal(model[0].bias, twin[0].bias)
    assert not torch.equal(model[0].weight, other[0].weight)
    reinitialise(twin, group, UNITS, generator=generator, initial=initial)
    assert not torch.equal(model[0].weight, twin[0].weight)  # the generator has moved on
    reinitialise(model, group, UNITS, initial=initial)
    assert not torch.equal(torch.get_rng_state(), state)


def test_an_error_while_drawing_leaves_the_layer_as_it_was():
    class Broken(nn.Linear):
        fail = False

        def reset_parameters(self):
            super().reset_parameters()
            if self.fail:
                raise RuntimeError("no luck")

    model, group = wide(Broken(64, 400))
    parameters, before = dict(model.named_parameters()), snapshot(model)
    model[0].fail = True
    with pytest.raises(RuntimeError, match="no luck"):
        reinitialise(model, group, UNITS)
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_layer_without_reset_needs_initial_values():
    class Bare(nn.Linear):
        reset_parameters = None

    layer = nn.Linear(64, 400)
    layer.__class__ = Bare
    model, group = wide(layer)
    with pytest.raises(UserError, match="'0' .*initial"):
        reinitialise(model, group, UNITS)
    reinitialise(model, group, UNITS, initial=snapshot(model))


def test_removed_connections_stay_removed():
    model, group = wide(nn.Linear(64, 400))
    masks = Masks()
    gone = torch.rand(400, 64) < 0.3
    masks.remove(model, "0", gone)
    reinitialise(model, group, UNITS, masks=masks)
    assert (model[0].weight[gone] == 0).all()
    assert (model[0].weight[~gone] != 0).all()


# What is refused


class Added(nn.Module):
    """Hidden units that are added to the input: not private."""

    def __init__(self):
        super().__init__()
        self.write, self.read = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.read(x + torch.relu(self.write(x)) @ torch.ones(4, 4))


@pytest.mark.parametrize("change", [silence, reinitialise])
def test_groups_that_are_not_private_are_refused_with_the_reason(change):
    model = Added()
    group = find_units(model, torch.randn(3, 4))["write"]
    before = snapshot(model)
    with pytest.raises(UserError) as error:
        change(model, group, [0])
    assert group.reason
    assert group.reason in str(error.value)
    assert "write" in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "index",
    [
        [1, 3],
        (3, 1, 3),
        torch.tensor([1, 3]),
        torch.tensor([1, 3], dtype=torch.int32),
        np.array([1, 3]),
        range(1, 4, 2),
        [False, True, False, True, False, False, False, False],
        torch.tensor([False, True, False, True, False, False, False, False]),
    ],
    ids=lambda index: type(index).__name__,
)
def test_forms_of_an_index(index):
    model = NETS["linear"].build()
    group = find_units(model, torch.randn(2, 6))["0"]
    assert set(units_index(group, index).tolist()) == {1, 3}
    silence(model, group, index)
    assert (model[2].weight == 0).any(0).nonzero().flatten().tolist() == [1, 3]


def test_a_single_number_and_no_unit_at_all():
    model = NETS["linear"].build()
    group = find_units(model, torch.randn(2, 6))["0"]
    assert units_index(group, torch.tensor(2)).tolist() == [2]
    before, state = snapshot(model), torch.get_rng_state()
    for nothing in [], torch.tensor([]), torch.zeros(8, dtype=torch.bool):
        silence(model, group, nothing)
        reinitialise(model, group, nothing)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("index", [[8], [-1], [0.5], [[0, 1], [2, 3]], [True, False]], ids=str)
def test_indices_that_do_not_fit(index):
    model = NETS["linear"].build()
    group = find_units(model, torch.randn(2, 6))["0"]
    before = snapshot(model)
    for change in silence, reinitialise:
        with pytest.raises(UserError, match="'0'") as error:
            change(model, group, index)
        assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("place", ["writer", "reader"])
def test_weights_computed_from_others_are_refused(place):
    layers = nn.Linear(4, 3), nn.Linear(3, 2)
    torch.nn.utils.parametrizations.weight_norm(layers[0 if place == "writer" else 1])
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    group = UnitGroup("0", size=3, activation="relu", at="1", consumers=[("2", 1)])
    before = snapshot(model)
    with pytest.raises(UserError, match="weight of layer '[02]'"):
        reinitialise(model, group, [0])
    assert place == "reader" or all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
