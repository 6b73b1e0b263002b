"""UPGD against its rule in numpy, and as an optimizer among others."""

import copy
import pickle

import numpy as np
import pytest
import torch
from stripping_streams import FixedHead, MultiHead, Network, everything, same, stream
from torch import nn

from plasticity import find_units, surgery
from plasticity.errors import UserError
from plasticity.optim import UPGD
from strategies import choose_optimizer

SHAPES = [(4, 3), (4,), (5, 2, 3, 3), ()]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Reference:
    """The rule, weight by weight, in numpy."""

    def __init__(self, weights, lr, beta, sigma, weight_decay, utility, protect, preset, seed):
        self.weights = [w.detach().double().numpy().copy() for w in weights]
        self.average = [np.zeros_like(w) for w in self.weights]
        self.age = [0] * len(weights)
        self.lr, self.beta, self.sigma, self.weight_decay = lr, beta, sigma, weight_decay
        self.utility, self.protect, self.preset = utility, protect, preset
        self.generator = torch.Generator().manual_seed(seed)

    def step(self, gradients):
        taking_part = [i for i, g in enumerate(gradients) if g is not None]
        for i in taking_part:
            self.age[i] += 1
            self.average[i] = self.beta * self.average[i] - (1 - self.beta) * gradients[i] * self.weights[i]
        young = {i: self.average[i] / (1 - self.beta ** self.age[i]) for i in taking_part}
        if self.preset is None:
            largest = max(max(u.max() for u in young.values()), 1e-300)
        else:
            largest = max(self.average[i].max() for i in taking_part)
        for i in taking_part:
            gate = sigmoid(young[i] / largest) if self.utility == "global" else self.local(young[i])
            shape = gradients[i].shape
            noise = np.zeros(shape)
            if self.sigma:
                drawn = torch.empty(shape, dtype=torch.float64).normal_(0, self.sigma, generator=self.generator)
                noise = drawn.numpy()
            change = (gradients[i] + noise) * (1 - gate) if self.protect else gradients[i] + noise * (1 - gate)
            factor = 2 if self.preset == "elsayed2024-readme" else 1
            self.weights[i] = self.weights[i] * (1 - self.lr * self.weight_decay) - factor * self.lr * change

    def local(self, utility):
        gate = np.empty_like(utility)
        if utility.ndim == 0:
            return sigmoid(utility / abs(utility))
        if self.preset or utility.ndim == 1:
            for place in np.ndindex(utility.shape[:-1]):
                gate[place] = sigmoid(utility[place] / np.sqrt((utility[place] ** 2).sum()))
        else:
            for row in range(len(utility)):
                gate[row] = sigmoid(utility[row] / np.sqrt((utility[row] ** 2).sum()))
        return gate


def parameters(dtype=torch.float64):
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def give(weights, missing=()):
    """Give random gradients; returns them as arrays, None for those without."""
    given = []
    for number, weight in enumerate(weights):
        weight.grad = None if number in missing else torch.randn_like(weight)
        given.append(None if number in missing else weight.grad.double().numpy().copy())
    return given


@pytest.mark.parametrize("preset", [None, "elsayed2024", "elsayed2024-readme"])
@pytest.mark.parametrize("protect", [True, False])
@pytest.mark.parametrize("utility", ["global", "local"])
@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_the_rule(utility, protect, preset, sigma):
    settings = {"lr": 0.05, "beta": 0.9, "sigma": sigma, "weight_decay": 0.1, "seed": 5}
    settings |= {"utility": utility, "protect": protect, "preset": preset}
    weights = parameters()
    optimizer, reference = UPGD(weights, **settings), Reference(weights, **settings)
    for step in range(6):
        before = weights[1].detach().clone()
        reference.step(give(weights, missing=[1] if step in (0, 3) else []))
        optimizer.step()
        assert torch.equal(weights[1], before) == (step in (0, 3))
        for weight, expected in zip(weights, reference.weights, strict=True):
            np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    assert [optimizer.state[weight]["step"] for weight in weights] == [6, 4, 6, 6]


def test_without_noise_and_protection_it_is_gradient_descent_bit_for_bit():
    weights = parameters(torch.float32)
    others = copy.deepcopy(weights)
    mine, plain = UPGD(weights, lr=0.1, sigma=0.0, protect=False), torch.optim.SGD(others, lr=0.1)
    for _ in range(5):
        give(weights)
        for weight, other in zip(weights, others, strict=True):
            other.grad = weight.grad.clone()
        mine.step(), plain.step()
    assert same(weights, others)


def test_useful_weights_move_less_and_useless_ones_freely():
    weight = nn.Parameter(torch.tensor([2.0, 0.0, -3.0]))
    weight.grad = torch.tensor([-1.0, -1.0, -1.0])  # utilities 2, 0, -3
    UPGD([weight], lr=1.0, sigma=0.0).step()
    free = [1 - sigmoid(1.0), 0.5, 1 - sigmoid(-1.5)]
    expected = torch.tensor([2.0, 0.0, -3.0]) + torch.tensor(free, dtype=torch.float32)
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize(("preset", "gate"), [(None, 0.0), ("elsayed2024", sigmoid(3 / (1 - 0.999)))])
def test_where_no_weight_is_useful_nothing_is_protected_but_by_the_authors_rule(preset, gate):
    weight = nn.Parameter(torch.tensor([1.0, 3.0]))
    weight.grad = torch.tensor([1.0, 1.0])  # utilities -1 and -3
    UPGD([weight], lr=0.5, sigma=0.0, preset=preset).step()
    assert weight[1].item() == pytest.approx(3 - 0.5 * (1 - gate))


def test_gradients_of_zero_change_nothing_and_make_no_nan():
    weights = parameters(torch.float32)
    before = copy.deepcopy(weights)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    for utility in ("global", "local"):
        UPGD(weights, sigma=0.0, utility=utility).step()
    assert same(weights, before)


def test_groups_have_settings_of_their_own_and_share_the_largest_utility():
    one, two, three = (nn.Parameter(torch.tensor([value])) for value in (1.0, 4.0, 1.0))
    for weight in (one, two, three):
        weight.grad = torch.tensor([-1.0])  # utilities 1, 4, 1
    groups = [{"params": [one], "lr": 0.1}, {"params": [two]}, {"params": [three], "utility": "local", "lr": 0.1}]
    UPGD(groups, lr=0.0, sigma=0.0).step()
    assert two.item() == 4.0
    assert one.item() == pytest.approx(1 + 0.1 * (1 - sigmoid(0.25)))
    assert three.item() == pytest.approx(1 + 0.1 * (1 - sigmoid(1.0)))


def test_averages_of_half_precision_go_on_moving():
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = UPGD([weight], lr=0.0, beta=0.9999)
    for _ in range(50):
        weight.grad = -torch.ones_like(weight)
        optimizer.step()
    assert optimizer.state[weight]["utility"].dtype == torch.float32
    torch.testing.assert_close(optimizer.state[weight]["utility"], torch.full((3,), 1 - 0.9999**50))
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    weight.grad = -torch.ones_like(weight)
    optimizer.step()
    assert optimizer.state[weight]["utility"].dtype == torch.float32


def train(optimizer, model, steps, seed):
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 5)).square().sum().backward()
        optimizer.step()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_it_goes_on_from_a_copy_as_if_nothing_had_happened(way):
    model = network()
    optimizer = UPGD(model.parameters(), sigma=0.1, seed=3)
    train(optimizer, model, 4, seed=1)
    if way == "state_dict":
        other = copy.deepcopy(model)
        again = UPGD(other.parameters(), lr=5.0, seed=99)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        clone = copy.deepcopy if way == "deepcopy" else lambda pair: pickle.loads(pickle.dumps(pair))
        other, again = clone((model, optimizer))
    train(optimizer, model, 4, seed=2)
    train(again, other, 4, seed=2)
    assert same(list(model.parameters()), list(other.parameters()))


def test_noise_comes_from_its_own_generator():
    runs = []
    for seed in (0, 0, 1):
        model = network()
        train(UPGD(model.parameters(), sigma=0.1, seed=seed), model, 3, seed=1)
        runs.append((list(model.parameters()), torch.get_rng_state()))
    assert same(runs[0][0], runs[1][0]) and not same(runs[0][0], runs[2][0])
    assert torch.equal(runs[0][1], runs[2][1])


@pytest.mark.parametrize("utility", ["global", "local"])
@pytest.mark.parametrize("preset", [None, "elsayed2024"])
def test_a_step_never_waits_for_the_device(utility, preset):
    model = network().to("meta")
    optimizer = UPGD(model.parameters(), utility=utility, preset=preset)
    for _ in range(2):
        model(torch.randn(3, 5, device="meta")).sum().backward()
        optimizer.step()
    assert len(optimizer.state) == 4


def test_a_closure_is_called_once_with_gradients_enabled():
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer, calls = UPGD([weight]), []

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        calls.append(loss.item())
        return loss

    assert optimizer.step(closure).item() == 4.0 and calls == [4.0] and weight.item() < 2.0


@pytest.mark.parametrize(
    "settings",
    [{"lr": -1.0}, {"beta": 1.0}, {"sigma": -0.1}, {"weight_decay": -1.0}, {"utility": "row"}, {"preset": "paper"}],
    ids=str,
)
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(UserError, match=f"UPGD: {next(iter(settings))} must be"):
        UPGD([nn.Parameter(torch.ones(2))], **settings)


def test_what_it_cannot_do_is_refused_in_words():
    embedding = nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(UserError, match="real parameters with dense gradients"):
        UPGD(embedding.parameters()).step()
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(UserError, match="real parameters with dense gradients"):
        UPGD([weight]).step()


def test_units_made_new_lose_their_utility():
    model = network()
    optimizer = UPGD(model.parameters())
    train(optimizer, model, 3, seed=1)
    group = find_units(model, torch.randn(2, 5))[0]
    surgery.reinitialise(model, group, [2], optimizer)
    utilities = [optimizer.state[parameter]["utility"] for parameter in model.parameters()]
    assert not utilities[0][2].any() and not utilities[1][2].any() and not utilities[2][:, 2].any()
    assert utilities[0][[0, 1, 3, 4, 5, 6]].any() and utilities[2][:, [0, 1]].any()


@pytest.mark.parametrize("model", [FixedHead, Network, MultiHead])
def test_in_avalanche_with_heads_that_grow_and_heads_of_later_tasks(model):
    from avalanche.training import Naive
    from avalanche.training.plugins import ReplayPlugin

    def run():
        torch.manual_seed(0)
        network = model()
        strategy = Naive(
            model=network,
            optimizer=UPGD(network.parameters(), lr=0.05, sigma=0.01),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=8,
            plugins=[ReplayPlugin(8)],
            evaluator=None,
        )
        for experience in stream(task_labels=model is MultiHead).train_stream:
            strategy.train(experience)
        return strategy

    one, other = run(), run()
    assert same(everything(one), everything(other))
    assert all(torch.isfinite(tensor).all() for tensor in everything(one))
    held = [p for group in one.optimizer.param_groups for p in group["params"]]
    for name, parameter in one.model.named_parameters():
        assert any(parameter is other for other in held), name
        assert one.optimizer.state[parameter]["utility"].shape == parameter.shape, name


def test_the_strategy_takes_ten_times_the_rate_that_suits_adam_and_the_runs_seed():
    torch.manual_seed(7)
    weights = parameters(torch.float32)
    torch.manual_seed(7)
    optimizer = choose_optimizer("upgd", weights, "adam", 1e-3)
    assert isinstance(optimizer, UPGD) and optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert optimizer.state_dict()["seed"] == 7
