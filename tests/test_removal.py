"""Physical removal of units, against networks cut by hand with numpy."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.models import MultiHeadClassifier
from reset_cases import NETS, UNITS, incoming_by_hand, outgoing_by_hand
from torch import nn
from torch.nn.utils import parametrizations

from plasticity import find_units
from plasticity.errors import UserError
from plasticity.surgery.masks import Masks
from plasticity.surgery.removal import removal_obstacle, remove_units

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
}
WHOLE = ["linear", "two readers", "flatten", "batch norm"]


def step(model, optimizer, inputs):
    optimizer.zero_grad()
    loss = model(inputs).pow(2).sum()
    loss.backward()
    optimizer.step()
    return loss


def trained(name, optimizer="adam"):
    net = NETS[name]
    model = net.build()
    inputs = torch.randn(net.shape)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(3):
        loss = step(model, optimizer, inputs)
    return net, model, inputs, optimizer, loss


def cuts(net, model):
    """Which rows and input columns of each parameter and buffer go, by name."""
    rows = {name: np.array(UNITS) for name in incoming_by_hand(net, model)}
    columns = {}
    for name, where in outgoing_by_hand(net, model).items():
        hit = where.numpy().reshape(where.shape[0], where.shape[1], -1)
        columns[name] = np.flatnonzero(hit.any((0, 2)))
    return rows, columns


def cut(name, array, rows, columns):
    if name in rows:
        array = np.delete(array, rows[name], axis=0)
    return np.delete(array, columns[name], axis=1) if name in columns else array


def memory(model, optimizer):
    """Everything of a run, by name."""
    found = {name: value.clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}/{key}"] = value.clone()
        if parameter.grad is not None:
            found[f"{name}/grad"] = parameter.grad.clone()
    for name, module in model.named_modules():
        for key in ("in_features", "out_features", "in_channels", "out_channels", "num_features"):
            if hasattr(module, key):
                found[f"{name}/{key}"] = torch.tensor(getattr(module, key))
    return found


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", WHOLE)
def test_everything_is_cut_as_by_hand(name, optimizer):
    net, model, inputs, optimizer, loss = trained(name, optimizer)
    objects = list(model.parameters())
    rows, columns = cuts(net, model)
    before = memory(model, optimizer)
    remove_units(model, find_units(model, inputs), {net.group: UNITS}, optimizer)
    after = memory(model, optimizer)
    assert before.keys() == after.keys()
    for key in before:
        parameter, _, part = key.partition("/")
        expected = before[key].numpy()
        if expected.ndim and part not in ("step",):
            expected = cut(parameter, expected, rows, columns)
            np.testing.assert_array_equal(after[key].numpy(), expected, err_msg=key)
        elif part == "step":
            assert after[key] == before[key]
    assert all(one is other for one, other in zip(objects, model.parameters(), strict=True))
    for module in model.modules():  # what a layer says of itself is what it holds
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.shape == module.running_mean.shape == (module.num_features,)
    step(model, optimizer, inputs)  # while the last loss and its graph are still there
    assert loss.grad_fn is not None
    assert all(
        value.shape == parameter.shape
        for parameter in model.parameters()
        for key, value in optimizer.state[parameter].items()
        if key != "step" and value is not None
    )


@pytest.mark.parametrize("name", WHOLE)
def test_dead_units_leave_no_trace(name):
    net, model, inputs, optimizer, _ = trained(name)
    with torch.no_grad():
        for where, tensor in ((w, model.get_parameter(n)) for n, w in incoming_by_hand(net, model).items() if "." in n
                              and not n.endswith(("mean", "var"))):  # fmt: skip
            tensor[where] = -3.0 if tensor.dim() == 1 else 0.0
        if name == "batch norm":
            model[1].weight[UNITS] = 0.0
    for training in (False, True):
        model.train(training)
        twin = copy.deepcopy(model)
        whole = model(inputs)
        remove_units(twin, find_units(twin, inputs), {net.group: UNITS})
        torch.testing.assert_close(twin(inputs), whole, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in twin.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", WHOLE)
def test_undo_leaves_everything_as_it_was(name, optimizer):
    net, model, inputs, optimizer, _ = trained(name, optimizer)
    before = memory(model, optimizer)
    removal = remove_units(model, find_units(model, inputs), {net.group: UNITS}, optimizer)
    assert not same(before, memory(model, optimizer))
    model(inputs)
    if name == "batch norm":
        before["1.num_batches_tracked"] += 1  # the pass in between; its statistics go with the removed buffers
    removal.undo()
    assert same(before, memory(model, optimizer))
    step(model, optimizer, inputs)


def test_further_units_can_be_removed_and_the_state_dict_fits_an_equal_network():
    net, model, inputs, optimizer, _ = trained("linear")
    for group, index in (("0", [0, 7]), ("2", [1]), ("0", [2])):
        remove_units(model, find_units(model, inputs), {group: index}, optimizer)
    other = net.build()
    remove_units(other, find_units(other, inputs), {"0": [0, 7], "2": [1]})
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(model.state_dict())
    remove_units(other, find_units(other, inputs), {"0": [2]})
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs), model(inputs))
    assert [len(layer.weight) for layer in model if isinstance(layer, nn.Linear)] == [5, 4, 3]


def test_two_groups_at_once_are_the_same_as_one_after_the_other():
    net = NETS["linear"]
    one = net.build()
    other = copy.deepcopy(one)
    inputs = torch.randn(net.shape)
    remove_units(one, find_units(one, inputs), {"0": [1, 3], "2": [0, 4]})
    for group, index in (("2", [0, 4]), ("0", [1, 3])):
        remove_units(other, find_units(other, inputs), {group: index})
    assert same(one.state_dict(), other.state_dict())


class Concatenated(nn.Module):
    """Two groups that one layer reads side by side."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(6, 4), nn.Linear(6, 5), nn.Linear(9, 3)

    def forward(self, x):
        return self.out(torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1))


def test_groups_with_a_common_reader():
    model, inputs = Concatenated(), torch.randn(7, 6)
    with torch.no_grad():
        model.left.bias[2] = model.right.bias[0] = model.right.bias[4] = -50
    whole = model(inputs)
    remove_units(model, find_units(model, inputs), {"left": [2], "right": [0, 4]})
    torch.testing.assert_close(model(inputs), whole)
    assert model.out.weight.shape == (3, 6)


def test_masks_follow():
    net, model, inputs, _, _ = trained("linear")
    masks = Masks()
    where = torch.rand(5, 8) < 0.4
    masks.remove(model, "2", where)
    masks.remove(model, "4", torch.eye(3, 5, dtype=torch.bool))
    removal = remove_units(model, find_units(model, inputs), {"0": [1, 3], "2": [4]})
    removal.slice(masks)
    expected = np.delete(np.delete(~where.numpy(), [1, 3], 1), [4], 0)
    np.testing.assert_array_equal(masks.kept(model, "2").numpy(), expected)
    np.testing.assert_array_equal(masks.kept(model, "4").numpy(), ~np.eye(3, 5, dtype=bool)[:, :4])
    masks.apply(model)


class MultiHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(5, 12), MultiHeadClassifier(12)

    def forward(self, x, tasks):
        return self.head(torch.relu(self.body(x)), tasks)


def test_heads_made_later_have_the_new_width():
    model = MultiHead()

    def adapt(task):
        model.head.adaptation(SimpleNamespace(classes_in_this_experience=[0, 1], task_labels=[task]))

    adapt(0), adapt(1)
    example = (torch.randn(4, 5), torch.tensor([0, 0, 1, 1]))
    remove_units(model, find_units(model, example), {"body": [0, 5, 6]})
    adapt(2)
    assert model(torch.randn(3, 5), torch.tensor([0, 1, 2])).shape == (3, 2)
    assert [head.classifier.weight.shape[1] for head in model.head.classifiers.values()] == [9, 9, 9]


def chain(*layers):
    return nn.Sequential(*layers)


class Shortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.out(torch.relu(self.b(h) + h))


class Extra(nn.Linear):
    """A layer with a tensor besides its weight."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(sizes[0]))

    def forward(self, x):
        return super().forward(x) * self.gain.sum()


OBSTACLES = {
    "grouped": (NETS["grouped"].build, NETS["grouped"].shape, "0", "grouped convolution"),
    "depthwise": (NETS["depthwise"].build, NETS["depthwise"].shape, "0", "grouped convolution"),
    "shortcut": (Shortcut, (5, 6), "b", ""),
    "layer norm": (
        lambda: chain(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)), (5, 6), "0", "together",
    ),
    "weight norm": (
        lambda: chain(nn.Linear(6, 8), nn.ReLU(), parametrizations.weight_norm(nn.Linear(8, 2))), (5, 6), "0", "",
    ),
    "extra": (lambda: chain(nn.Linear(6, 8), nn.ReLU(), Extra(8, 2)), (5, 6), "0", "gain"),
}  # fmt: skip


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_is_in_the_way_is_said_and_nothing_happens(name):
    build, shape, group, words = OBSTACLES[name]
    model = build()
    units = find_units(model, torch.randn(shape))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    why = removal_obstacle(model, units[group])
    assert why is not None and words in why
    with pytest.raises(UserError, match=f"units of group '{group}' cannot be removed: "):
        remove_units(model, units, {group: [0]})
    assert same(before, model.state_dict())


def test_optimizer_state_of_another_shape_is_in_the_way():
    net = NETS["linear"]
    model, inputs = net.build(), torch.randn(net.shape)
    optimizer = torch.optim.Adafactor(model.parameters())
    units = find_units(model, inputs)
    assert removal_obstacle(model, units["0"], optimizer) is None
    step(model, optimizer, inputs)
    assert "another shape" in removal_obstacle(model, units["0"], optimizer)


def test_a_group_keeps_a_unit():
    net = NETS["linear"]
    model = net.build()
    with pytest.raises(UserError, match="would lose all its 8 units"):
        remove_units(model, find_units(model, torch.randn(net.shape)), {"0": range(8)})


@pytest.mark.parametrize("name", WHOLE)
def test_as_torch_pruning_does(name):
    pruning = pytest.importorskip("torch_pruning")
    net, model, inputs, _, _ = trained(name)
    other = copy.deepcopy(model)
    graph = pruning.DependencyGraph().build_dependency(other, example_inputs=inputs)
    layer = other.get_submodule(net.group)
    prune = pruning.prune_linear_out_channels if isinstance(layer, nn.Linear) else pruning.prune_conv_out_channels
    graph.get_pruning_group(layer, prune, idxs=UNITS).prune()
    remove_units(model, find_units(model, inputs), {net.group: UNITS})
    assert same(model.state_dict(), other.state_dict())
