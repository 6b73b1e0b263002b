"""Plasticity injection into networks, against its formula in numpy."""

import copy
import pickle

import numpy as np
import pytest
import torch
from cases import adapted
from stripping_streams import MultiHead, Network, same
from test_architecture import INPUTS, Functional, model_and_example
from torch import nn

from plasticity import find_units, watch
from plasticity.architecture import Injection, changes, inject_plasticity
from plasticity.errors import UserError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def vectors():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def images():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(6, 2))


def head_in_numpy(features, weights):
    w1, b1, w2, b2 = (tensor.detach().numpy() for tensor in weights)
    return np.maximum(features @ w1.T + b1, 0) @ w2.T + b2


def train(model, optimizer, inputs, steps=5):
    for _ in range(steps):
        optimizer.zero_grad()
        model(*inputs).square().sum().backward()
        optimizer.step()


def injection_of(model):
    (found,) = [module for module in model.modules() if isinstance(module, Injection)]
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_formula_and_what_becomes_of_optimizer_state(optimizer):
    model, x = vectors(), torch.randn(7, 5)
    made = OPTIMIZERS[optimizer](model.parameters())
    train(model, made, (x,))
    parameters, old = list(model.parameters()), copy.deepcopy(model)
    state = copy.deepcopy([made.state[p] for p in parameters[:2]])
    names = inject_plasticity(model, x, made, torch.Generator().manual_seed(3))
    assert names == ("2", "3", "4")
    assert torch.equal(model(x), old(x))
    assert [p is q for p, q in zip(model.parameters(), parameters, strict=True)] == [True] * 6
    assert [made.state.get(p) for p in parameters[2:]] == [None] * 4
    for before, parameter in zip(state, parameters[:2], strict=True):
        assert all(
            torch.equal(torch.as_tensor(before[k]), torch.as_tensor(v)) for k, v in made.state[parameter].items()
        )
    begun = copy.deepcopy(parameters[2:])
    assert not any(torch.equal(p, q) for p, q in zip(begun, list(old.parameters())[2:], strict=True))
    train(model, made, (x,))
    features = np.maximum((x @ parameters[0].T + parameters[1]).detach().numpy(), 0)
    expected = head_in_numpy(features, list(old.parameters())[2:])
    expected = expected + head_in_numpy(features, parameters[2:]) - head_in_numpy(features, begun)
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(expected, old(x).detach().numpy(), atol=1e-3)
    assert all(len(made.state[p]) for p in parameters)


def test_the_encoder_learns_on_as_before():
    model, x = vectors(), torch.randn(7, 5)
    model(x).square().sum().backward()
    before = [p.grad.clone() for p in list(model.parameters())[:2]]
    model.zero_grad()
    inject_plasticity(model, x)
    model(x).square().sum().backward()
    for gradient, parameter in zip(before, model.parameters(), strict=False):
        torch.testing.assert_close(parameter.grad, gradient)


def test_new_weights_are_the_layers_own_and_come_from_the_generator():
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(0)
        model, x = vectors(), torch.randn(2, 5)
        state = torch.get_rng_state()
        inject_plasticity(model, x, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), state)
        found.append([model[2].weight, model[2].bias, model[4].weight, model[4].bias])
    assert same(found[0], found[1]) and not same(found[0], found[2])
    torch.manual_seed(int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(3))))
    expected = nn.Linear(8, 6), nn.Linear(6, 3)
    assert torch.equal(found[0][0], expected[0].weight) and torch.equal(found[0][2], expected[1].weight)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", list(INPUTS))
def test_outputs_of_every_benchmark_network_stay_bit_for_bit(name, heads, training):
    model, example = model_and_example(name, heads)
    for key, buffer in model.named_buffers():
        if "active_units" in key:
            buffer.fill_(1)
    model.train(training)
    before = copy.deepcopy(model)(*example)
    buffers = copy.deepcopy(dict(model.named_buffers()))
    parameters = dict(model.named_parameters())
    names = inject_plasticity(model, example)
    assert names[-1] == ("linear" if name == "slim-resnet18" else "head") and len(names) >= 3
    assert {key: id(value) for key, value in model.named_parameters()} == {k: id(v) for k, v in parameters.items()}
    assert changes(model)[0].parameters_before == changes(model)[0].parameters_after
    for key, buffer in buffers.items():
        fresh = any(key.startswith(f"{part}.") for part in names)  # statistics of the new part begin anew
        assert fresh or torch.equal(dict(model.named_buffers())[key], buffer)
    assert torch.equal(model(*example), before)
    assert all(module.training == training for module in model.modules())


def test_batch_normalisation_dropout_and_activations_in_place():
    model, x = images(), torch.randn(16, 3, 5, 5)
    train(model, torch.optim.SGD(model.parameters(), lr=0.01), (x,))
    without = copy.deepcopy(model)
    without[7].p = 0.0
    expected = copy.deepcopy(model).eval()(x), without.train()(x)
    assert inject_plasticity(model, x) == ("4", "5", "6", "8")  # the frozen parts are without dropout
    assert torch.equal(model.eval()(x), expected[0])
    model.train()
    outputs = model(x)
    assert not torch.equal(outputs, expected[1])  # dropout acts on the new part
    model[7].p = 0.0
    assert torch.equal(model(x), expected[1])
    assert all(module.training for module in model.modules())


def test_frozen_parts_stay_as_they_are():
    model, x = images(), torch.randn(16, 3, 5, 5)
    inject_plasticity(model, x)
    added = injection_of(model)
    assert not list(added.parameters()) and len(list(added.buffers())) == 2 * (6 + 3)
    before = copy.deepcopy(dict(added.named_buffers()))
    train(model, torch.optim.AdamW(model.parameters(), weight_decay=0.5), (x,))
    moved = {key for key, value in added.named_buffers() if not torch.equal(value, before[key])}
    statistics = {key for key, value in before.items() if value.dim() == 0 or not torch.is_floating_point(value)}
    assert len(moved) == 2 * 3 and statistics < moved  # running statistics follow the data, weights do not move


def test_only_the_new_part_is_seen_by_those_who_watch():
    model, x = vectors(), torch.randn(9, 5)
    inject_plasticity(model, x)
    units = find_units(model, x)
    assert [(group.name, group.private) for group in units] == [("0", False), ("2", True)]
    assert "whose weight is not that of a plain Linear" in units["0"].reason
    with watch(model, units, features=100) as activity:
        model(x)
    assert {name: stat.count for name, stat in activity.statistics().items()} == {"0": 9, "2": 9}
    torch.testing.assert_close(activity.features(), model[3](model[2](model[1](model[0](x)))))


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_copies_are_complete_and_stand_alone(way):
    model, x = vectors(), torch.randn(9, 5)
    inject_plasticity(model, x)
    train(model, torch.optim.SGD(model.parameters(), lr=0.05), (x,))
    if way == "state_dict":
        other = vectors()
        inject_plasticity(other, x)
        other.load_state_dict(model.state_dict())
    else:
        other = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    expected = model(x)
    assert torch.equal(other(x), expected)
    train(other, torch.optim.SGD(other.parameters(), lr=0.05), (x,))
    assert torch.equal(model(x), expected) and not torch.allclose(other(x), expected)
    injection_of(other).frozen_0.zero_()
    assert torch.equal(model(x), expected)


def grown(model, tasks):
    """Adapt heads to that many tasks, of classes 0 and 1, then 2 and 3, and so on."""
    return adapted(model.train(), tasks=tasks, classes=2 * tasks)


def test_classes_that_come_later_begin_as_on_the_old_features():
    model, x = grown(Network(dead=False), 2), torch.rand(6, 8)
    inject_plasticity(model, x)
    model.eval()
    with torch.no_grad():
        for parameter in [*model.features[3].parameters(), *model.classifier.parameters()]:
            parameter.add_(torch.randn_like(parameter) / 10)  # as if it had learned
    added, before = injection_of(model), model(x)
    frozen, begun = ([getattr(added, f"{part}_{n}").clone() for n in range(4)] for part in ("frozen", "copy"))
    grown(model, 3).eval()
    after = model(x)
    assert after.shape == (6, 6)
    torch.testing.assert_close(after[:, :4], before)
    fresh = model.classifier.classifier.weight[4:], model.classifier.classifier.bias[4:]
    features = torch.relu(model.features[0](x)).detach().numpy()
    learned = [*model.features[3].parameters(), *fresh]
    expected = head_in_numpy(features, learned)
    expected = expected + head_in_numpy(features, [*frozen[:2], *fresh]) - head_in_numpy(features, [*begun[:2], *fresh])
    np.testing.assert_allclose(after[:, 4:].detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.classifier.classifier.weight[4:].add_(1.0)  # the frozen parts keep what they were given
    assert torch.equal(added.frozen_2[4:] + 1.0, model.classifier.classifier.weight[4:])


def test_a_head_for_a_task_that_comes_later_begins_as_on_the_old_features():
    model, x = adapted(MultiHead(), tasks=2, classes=2), torch.rand(6, 8)
    first, second = (torch.full((6,), task) for task in (0, 1))
    inject_plasticity(model, (x, second))
    model.eval()
    before = model(x, first), model(x, second)
    adapted(model.train(), tasks=3, classes=2).eval()
    third = torch.tensor([0, 2, 1, 2, 2, 0])
    mixed = model(x, third)
    for task, expected in enumerate(before):
        torch.testing.assert_close(mixed[third == task], expected[third == task])
    added = injection_of(model)
    hidden = [added.frozen_0, added.frozen_1]
    head = model.classifier.classifiers["2"].classifier
    features = torch.relu(model.features[0](x)).detach().numpy()
    expected = head_in_numpy(features, [*hidden, head.weight, head.bias])
    np.testing.assert_allclose(mixed[third == 2].detach().numpy(), expected[third == 2], rtol=1e-4, atol=1e-5)


def test_a_chosen_head():
    model, x = vectors(), torch.randn(4, 5)
    assert inject_plasticity(copy.deepcopy(model), x, head=("4",)) == ("4",)
    assert inject_plasticity(copy.deepcopy(model), x, head=["0", "1", "2", "3", "4"]) == ("0", "1", "2", "3", "4")
    deep = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)))
    expected = deep(x)
    assert inject_plasticity(deep, x, head=("2",)) == ("2",)
    assert torch.equal(deep(x), expected)
    assert isinstance(deep[2][2].injection, Injection)


def test_a_chosen_head_for_each_task():
    model, x = adapted(MultiHead(), tasks=2, classes=2).eval(), torch.rand(6, 8)
    tasks = torch.tensor([0, 1, 1, 0, 1, 0])
    expected = model(x, tasks)
    assert inject_plasticity(model, (x, tasks), head=("features.4", "classifier")) == ("features.4", "classifier")
    assert torch.equal(model(x, tasks), expected)


def test_forgetting_the_old_head_leaves_the_new_one_alone():
    model, x = vectors(), torch.randn(4, 5)
    inject_plasticity(model, x)
    injection_of(model).reset_parameters()
    alone = vectors()
    alone.load_state_dict({key: value for key, value in model.state_dict().items() if "injection" not in key})
    torch.testing.assert_close(model(x), alone(x))


class ReadElsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.act, self.gate = nn.Linear(5, 6), nn.Linear(6, 2), nn.ReLU(), nn.Linear(6, 2)

    def forward(self, x):
        hidden = self.act(self.one(x))
        return self.two(hidden).mul_(torch.sigmoid(self.gate(hidden)))


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.scale


def refused(model, words, x=None, **arguments):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=words):
        inject_plasticity(model, torch.randn(3, 5) if x is None else x, **arguments)
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)


def test_what_cannot_be_done_is_refused_in_words_and_leaves_the_network_alone():
    model, x = vectors(), torch.randn(3, 5)
    refused(model, "has no 'classifier'", head=("classifier",))
    refused(model, "at least one module", head=())
    refused(model, "the output of '2' is not what the rest", head=("2", "4"))
    refused(model, "the output of '3' is not what the rest", head=("2", "3"))
    refused(ReadElsewhere(), "no head with a hidden layer was found")
    refused(Functional(), "no head with a hidden layer was found", x=torch.randn(2, 3))
    refused(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), OwnParameter()), r"OwnParameter\) has no reset_parameters")
    twice = nn.Linear(6, 6)
    repeated = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), twice, nn.ReLU(), twice)
    refused(repeated, "'2' is called 2 times", head=("2", "3", "2"))
    inject_plasticity(model, x)
    refused(model, "it can be done once")


class ReadsBack(nn.Module):
    """Its output looks as if the head alone made it, but its gate has read what is computed within."""

    def __init__(self):
        super().__init__()
        self.one, self.act, self.two = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)

    def forward(self, x):
        hidden = self.act(self.one(x))
        self.two.bias.data.copy_(hidden.detach().mean().expand(2))
        return self.two(hidden)


def test_a_head_that_something_else_reads_is_refused_and_restored():
    model = ReadsBack()
    model(torch.randn(3, 5))
    weights = copy.deepcopy([model.one.weight, model.one.bias, model.two.weight])
    with pytest.raises(UserError, match="one -> act -> two: the output would change"):
        inject_plasticity(model, torch.randn(3, 5))
    assert same([model.one.weight, model.one.bias, model.two.weight], weights)
    assert not any(isinstance(module, Injection) for module in model.modules())
    assert not model.one._forward_pre_hooks and not model.two._forward_hooks


def test_a_step_never_waits_for_the_device():
    model = images()
    inject_plasticity(model, torch.randn(4, 3, 5, 5))
    model = model.to("meta")
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), (torch.randn(4, 3, 5, 5, device="meta"),), steps=2)
    assert injection_of(model).frozen_0.device.type == "meta"


def test_dropout_in_the_head_acts_on_the_new_part_alone():
    torch.manual_seed(0)
    layers = [nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 3)]
    model, x = nn.Sequential(*layers), torch.randn(6, 5)
    before = model.eval()(x).detach()
    inject_plasticity(model, x, head=["2", "3", "4", "5"])
    model.train()
    torch.manual_seed(1)
    found = [model(x).detach() for _ in range(2)]
    torch.manual_seed(1)
    kept = [torch.nn.functional.dropout(torch.ones(6, 40), 0.5) for _ in range(2)]  # the only draws there are
    hidden = model[3](model[2](model[1](model[0](x)))).detach()
    for output, mask in zip(found, kept, strict=True):
        new, begun = model[5].weight.detach(), model[5].bias.detach()
        expected = before + ((hidden * mask) @ new.T + begun) - (hidden @ new.T + begun)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(*found)
