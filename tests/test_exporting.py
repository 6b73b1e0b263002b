"""Plain checkpoints: they load into plain networks, without this library, and give the same outputs."""

import copy
import subprocess
import sys

import pytest
import torch
from exclusion_cases import MAKE, trained
from stripping_streams import FixedHead, MultiHead, Network, run, stream
from torch import nn

import plasticity
from plasticity import find_units
from plasticity.architecture import inject_plasticity, with_activation, with_crelu, with_layer_norm
from plasticity.errors import UserError
from plasticity.plugins import DemonPruningPlugin, HyperHypoPlugin, PlasticityInjectionPlugin, SynapticStrippingPlugin

X = torch.rand(30, 8)
IMAGES = torch.randn(12, 2, 9, 9)


def outputs(model, *inputs):
    with torch.no_grad():
        return model.eval()(*inputs)


def saved(checkpoint, tmp_path):
    """What a file of it holds for those who do not run code from files."""
    torch.save(checkpoint, tmp_path / "network.pt")
    return torch.load(tmp_path / "network.pt", weights_only=True)


def vectors(first=8, second=6):
    return nn.Sequential(nn.Linear(8, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 3))


def images(channels=4, affine=True, width=6):
    return nn.Sequential(
        nn.Conv2d(2, channels, 3, bias=False), nn.BatchNorm2d(channels, affine=affine), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(9 * channels, width),
        nn.ReLU(inplace=True), nn.Linear(width, 3),
    )  # fmt: skip


def learned(model, x, steps=4):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return model


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MAKE))
def test_after_every_plugin_a_plain_network_loads_it_and_gives_the_same(name, tmp_path):
    head = {"head": ["classifier"]} if name == "PlasticityInjectionPlugin" else {}
    plugin = MAKE[name](**head)
    strategy = trained(plugin, criterion=nn.CrossEntropyLoss())
    checkpoint = saved(plasticity.export(strategy.model, strategy.plugins, example=X), tmp_path)
    fresh = FixedHead()
    if name == "DemonPruningPlugin, shrink":
        widths = checkpoint["widths"]
        fresh.features[0] = nn.Linear(**widths["features.0"])
        fresh.features[3] = nn.Linear(**widths["features.3"])
        fresh.classifier = nn.Linear(**widths["classifier"])
        assert widths["features.0"]["out_features"] < 20
    fresh.load_state_dict(checkpoint["state_dict"])
    torch.testing.assert_close(outputs(fresh, X), outputs(strategy.model, X))
    if name != "PlasticityInjectionPlugin":
        assert torch.equal(outputs(fresh, X), outputs(strategy.model, X))


@pytest.mark.parametrize(
    "plugin",
    [SynapticStrippingPlugin, lambda: HyperHypoPlugin("prune", percent=20), lambda: DemonPruningPlugin(noise_std=0.0)],
)
def test_what_is_removed_is_0_whatever_the_network_holds_now(plugin):
    plugin = plugin()
    strategy = run([plugin], FixedHead)
    masks, kept = plugin.masks, copy.deepcopy(plugin.masks.state_dict())
    removed = [(name, ~masks.kept(strategy.model, name)) for name in masks]
    assert any(bool(where.any()) for _, where in removed)
    with torch.no_grad():
        for parameter in strategy.model.parameters():
            parameter.fill_(1.0)
    state = plasticity.export(strategy.model, strategy.plugins)["state_dict"]
    for name, where in removed:
        assert torch.equal(state[f"{name}.weight"] == 0, where)
    if isinstance(plugin, DemonPruningPlugin):
        assert plugin.pruned.vectors
        for name, left in plugin.pruned.vectors.items():
            assert torch.equal(state[name] != 0, left)
    assert all(bool((parameter == 1).all()) for parameter in strategy.model.parameters())  # it stays as it is
    assert all(torch.equal(mask, masks.state_dict()[name]) for name, mask in kept.items())


def test_a_checkpoint_shares_no_memory_and_loads_where_nothing_of_the_library_is(tmp_path):
    model = vectors()
    checkpoint = plasticity.export(nn.DataParallel(model))
    assert list(checkpoint["state_dict"]) == list(model.state_dict())
    assert checkpoint["widths"]["2"] == {"in_features": 8, "out_features": 6}
    saved(checkpoint, tmp_path)
    with torch.no_grad():
        expected = outputs(model, X[:2]).tolist()
        model[0].weight.zero_()
    code = f"""
import sys, torch
from torch import nn
saved = torch.load({str(tmp_path / "network.pt")!r}, weights_only=True)
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
model.load_state_dict(saved["state_dict"])
assert not [name for name in sys.modules if name.startswith("plasticity")]
print(model(torch.tensor({X[:2].tolist()})).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.tensor(eval(done.stdout)), torch.tensor(expected))


@pytest.mark.parametrize("build", [Network, MultiHead])
def test_heads_that_have_grown(build, tmp_path):
    plugin = SynapticStrippingPlugin()
    strategy = run([plugin], build, experiences=stream(task_labels=build is MultiHead))
    checkpoint = saved(plasticity.export(strategy.model, strategy.plugins), tmp_path)
    again = run([], build, experiences=stream(task_labels=build is MultiHead)).model
    again.load_state_dict(checkpoint["state_dict"])
    inputs = (X, torch.arange(30) % 3) if build is MultiHead else (X,)
    assert torch.equal(outputs(again, *inputs), outputs(strategy.model, *inputs))
    grown = [each for name, each in checkpoint["widths"].items() if name.startswith("classifier")]
    assert grown[-1]["out_features"] in (2, 6)


# --- CReLU -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vectors", "images", "images, no scales"])
def test_units_of_crelu_become_two_of_relu(name, tmp_path):
    affine = "no scales" not in name
    plain, x = (vectors(), X) if name == "vectors" else (images(affine=affine), IMAGES)
    model = learned(with_crelu(plain, x), x)
    checkpoint = saved(plasticity.export(model, example=x), tmp_path)
    sizes, widths = [group.size for group in find_units(model, x)], checkpoint["widths"]
    if name == "vectors":
        plain = vectors(*(2 * size for size in sizes))
    else:
        plain[0] = nn.Conv2d(2, 2 * sizes[0], 3, bias=False)
        plain[1] = nn.BatchNorm2d(2 * sizes[0], affine=affine)
        plain[4] = nn.Conv2d(2 * sizes[0], 2 * sizes[1], 3, padding=1)
        plain[7], plain[9] = nn.Linear(**widths["7"]), nn.Linear(**widths["9"])
        assert widths["1"] == {"num_features": 2 * sizes[0]}
    plain.load_state_dict(checkpoint["state_dict"])
    for inputs in (x, x.flip(0) * 1.7):
        torch.testing.assert_close(outputs(plain, inputs), outputs(model, inputs), rtol=1e-4, atol=1e-5)


class Pooled(nn.Module):
    """Takes the largest position before the activation, which does not commute with a change of sign."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.act = nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.ReLU()
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x):
        return self.head(self.act(self.pool(self.conv(x))).flatten(1))


def test_crelu_that_cannot_be_merged_is_refused_in_words():
    model = with_crelu(images(), IMAGES)
    with pytest.raises(UserError, match="export needs an input of it"):
        plasticity.export(model)
    pooled = with_crelu(Pooled(), IMAGES)
    before = [value.clone() for value in pooled.state_dict().values()]
    with pytest.raises(UserError, match="its outputs would change|cannot be merged"):
        plasticity.export(pooled, example=IMAGES)
    assert all(torch.equal(one, other) for one, other in zip(before, pooled.state_dict().values(), strict=True))
    normalised = with_layer_norm(with_crelu(vectors(), X), X)
    with pytest.raises(UserError, match="CReLU behind '0' cannot be merged"):
        plasticity.export(normalised, example=X)


# --- plasticity injection --------------------------------------------------------------------------------------------


def test_a_linear_head_becomes_one(tmp_path):
    model = vectors()
    inject_plasticity(model, X, head=("4",))
    learned(model, X)
    state = saved(plasticity.export(model, example=X), tmp_path)["state_dict"]
    plain = vectors()
    plain.load_state_dict(state)
    torch.testing.assert_close(outputs(plain, X), outputs(model, X), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs(plain, 3 * X), outputs(model, 3 * X), rtol=1e-4, atol=1e-5)


def test_a_head_that_has_learned_nothing_is_the_old_one():
    model = vectors()
    inject_plasticity(model, X, head=("2", "3", "4"))
    with pytest.raises(UserError, match="export needs an input of it"):
        plasticity.export(model)
    plain = vectors()
    plain.load_state_dict(plasticity.export(model, example=X)["state_dict"])
    assert torch.equal(outputs(plain, X), outputs(model, X))
    with torch.no_grad():
        model[4].weight[0, 0] += 1e-6  # too little to be seen in the outputs
    assert plasticity.export(model, example=X)["widths"]["4"] == {"in_features": 18, "out_features": 3}


def deep(width=1):
    layers = [
        nn.Linear(8, 7),
        nn.ReLU(),
        nn.Linear(7, 6 * width),
        nn.BatchNorm1d(6 * width),
        nn.ReLU(),
        nn.Dropout(0.2),
    ]
    return nn.Sequential(*layers, nn.Linear(6 * width, 5 * width, bias=False), nn.Tanh(), nn.Linear(5 * width, 3))


@pytest.mark.parametrize("head", [("2", "3", "4"), ("2", "3", "4", "5", "6", "7", "8"), ("6", "7", "8")])
def test_the_parts_of_a_head_with_hidden_layers_stand_side_by_side(head, tmp_path):
    build = deep if len(head) > 3 or head[0] == "6" else vectors
    model = learned(build(), X)
    inject_plasticity(model, X, head=head)
    learned(model, X)
    saved_widths = saved(plasticity.export(model, example=X), tmp_path)
    plain = build()
    for name, widths in saved_widths["widths"].items():
        number = int(name)
        kind = nn.BatchNorm1d if "num_features" in widths else nn.Linear
        bias = {"bias": plain[number].bias is not None} if kind is nn.Linear else {}
        plain[number] = kind(**widths, **bias)
    plain.load_state_dict(saved_widths["state_dict"])
    for inputs in (X, 2 * X.flip(1)):
        torch.testing.assert_close(outputs(plain, inputs), outputs(model, inputs), rtol=1e-4, atol=1e-4)


def test_a_head_whose_features_are_all_dead_for_the_example_is_not_taken_for_a_linear_one(tmp_path):
    model = learned(deep(), X)
    inject_plasticity(model, X, head=("6", "7", "8"))
    learned(model, X)
    with torch.no_grad():
        model[3].bias.copy_(-2 * model[:3].eval()(X).abs().amax(0) - 1)
        model[3].weight.fill_(1)
        model[3].running_mean.zero_()
        model[3].running_var.fill_(1)
    assert not model[:5].eval()(X).any()
    assert model[:5](-50 * X).any()
    checkpoint = saved(plasticity.export(model, example=X), tmp_path)
    assert checkpoint["widths"]["8"]["in_features"] == 15
    plain = deep()
    plain[6], plain[8] = nn.Linear(6, 15, bias=False), nn.Linear(15, 3)
    plain.load_state_dict(checkpoint["state_dict"])
    torch.testing.assert_close(outputs(plain, -50 * X), outputs(model, -50 * X), rtol=1e-4, atol=1e-4)


class TwoLayers(nn.Module):
    """A head of two layers that do not follow one another."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        return torch.tanh(self.one(x)) * self.other(x)


def test_other_heads_are_refused_in_words():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), TwoLayers())
    inject_plasticity(model, X, head=("2",))
    learned(model, X)
    with pytest.raises(UserError, match=r"was injected into \(Linear, Linear\) cannot be merged: only linear layers"):
        plasticity.export(model, example=X)
    mixing = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.Softmax(1), nn.Linear(5, 3))
    inject_plasticity(mixing, X, head=("2", "3", "4"))
    learned(mixing, X)
    with pytest.raises(UserError, match="its outputs would change"):
        plasticity.export(mixing, example=X)


@pytest.mark.parametrize("build", [Network, MultiHead])
def test_heads_of_avalanche_that_have_grown_since(build):
    plugin = PlasticityInjectionPlugin(head=["classifier"])
    strategy = run([plugin], build, experiences=stream(task_labels=build is MultiHead))
    inputs = (X, torch.arange(30) % 3) if build is MultiHead else X
    state = plasticity.export(strategy.model, example=inputs)["state_dict"]
    again = run([], build, experiences=stream(task_labels=build is MultiHead)).model
    again.load_state_dict(state)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    torch.testing.assert_close(outputs(again, *given), outputs(strategy.model, *given), rtol=1e-4, atol=1e-5)


# --- others ----------------------------------------------------------------------------------------------------------


def test_changed_activations_and_normalisers_are_plain_modules():
    for model in (with_layer_norm(vectors(), X), with_activation(vectors(), X, nn.PReLU)):
        again = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        again.load_state_dict(plasticity.export(model)["state_dict"])
        assert torch.equal(outputs(again, X), outputs(model, X))


def test_what_has_no_shape_or_no_counterpart_is_refused():
    with pytest.raises(UserError, match=r"parameter '0\.weight' has no shape yet"):
        plasticity.export(nn.Sequential(nn.LazyLinear(3)))
    model = vectors()
    foreign = nn.Sequential(model, nn.Identity())
    foreign[1].__class__ = type("Own", (nn.Identity,), {"__module__": "plasticity.architecture.own"})
    with pytest.raises(UserError, match="'1' is a Own of this library"):
        plasticity.export(foreign)
