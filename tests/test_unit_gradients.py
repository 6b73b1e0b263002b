"""Units that do not learn, told from gradients: against autograd, and against the mode that sees activations."""

import pytest
import torch
import torch.nn.functional as F
from cases import Net
from slow_statistics import hooks
from torch import nn

from plasticity import UnitGradients, UnitGroup, UserError, find_units, measures, watch, watch_gradients


def mlp(activation=nn.ReLU, bias=True):
    """Two hidden layers of 5 and 6 units; the first has two dead ones, the second one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5, bias), activation(), nn.Linear(5, 6, bias), activation(), nn.Linear(6, 3, bias)
    )
    if bias:
        with torch.no_grad():
            model[0].bias.copy_(torch.tensor([-50.0, -50.0, 0.5, 0.5, 0.5]))
            model[2].bias.copy_(torch.tensor([1.0, 1.0, 1.0, -50.0, 1.0, 1.0]))
    return model


def batches(count=4, size=8, seed=1, width=4):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, width, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


def marks(stats):
    return {name: measures.not_learning_units(stat).nonzero().flatten().tolist() for name, stat in stats.items()}


def train(model, data=None, penalty=None, lr=0.05, to_none=True, **optimizer):
    """Train under both watches; return what each saw."""
    data = data or batches()
    units = find_units(model, data[0][0])
    steps = torch.optim.SGD(model.parameters(), lr=lr, **optimizer)
    with watch(model, units) as activity, watch_gradients(model, units, steps) as gradients:
        for x, y in data:
            loss = F.cross_entropy(model(x), y)
            if penalty is not None:
                loss = loss + penalty(model)
            steps.zero_grad(set_to_none=to_none)
            loss.backward()
            steps.step()
    return activity.statistics(), gradients.statistics()


def dead(stats):
    return {name: measures.dead_units(stat).nonzero().flatten().tolist() for name, stat in stats.items()}


class Residual(nn.Module):
    """Normalised convolutions that are added up before an activation."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.c = nn.Linear(4 * 9, 3)
        self.seen = {}

    def forward(self, x):
        x = x.view(-1, 2, 3, 3)
        self.seen["a"] = self.norm_a(self.a(x))
        h = F.relu(self.seen["a"])
        self.seen["b"] = self.norm_b(self.b(h)) + h
        return self.c(F.relu(self.seen["b"]).flatten(1))


class Plain(nn.Module):
    """Two linear layers, one read in two halves by what comes after a concatenation."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(18, 3), nn.Linear(18, 2), nn.Linear(5, 3)
        self.seen = {}

    def forward(self, x):
        self.seen["a"] = torch.cat([self.a(x), self.b(x)], 1)
        return self.c(F.relu(self.seen["a"]))


@pytest.mark.parametrize("build", [Residual, Plain])
def test_gradients_equal_those_of_autograd_before_each_activation(build):
    torch.manual_seed(0)
    model, data = build(), batches(width=18)
    units = find_units(model, data[0][0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slow = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in units}
    assert set(slow) == set(model.seen)
    with watch_gradients(model, units, optimizer) as gradients:
        for x, y in data:
            loss = F.cross_entropy(model(x), y)
            names = list(slow)
            before = torch.autograd.grad(loss, [model.seen[name] for name in names], retain_graph=True)
            for name, each in zip(names, before, strict=True):
                slow[name] += each.double().transpose(0, 1).flatten(1).sum(1).abs()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, stat in gradients.statistics().items():
        assert stat.count == len(data) and stat.mean_abs.dtype == torch.float64
        torch.testing.assert_close(stat.mean_abs, slow[name] / len(data), rtol=1e-4, atol=1e-7)


def test_dead_units_do_not_learn_and_others_do():
    activity, gradients = train(mlp())
    assert marks(gradients) == dead(activity) == {"0": [0, 1], "2": [3]}
    assert float(measures.not_learning_fraction(gradients)) == 3 / 11
    assert float(measures.by_layer(measures.not_learning_fraction, gradients)["0"]) == 2 / 5


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_both_modes_agree_on_a_network_that_dies(weight_decay):
    """With steps that are too long, units die on the way; then each mode is asked of the same mini-batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    train(model, batches(20, seed=2), lr=1.0, weight_decay=weight_decay)
    activity, gradients = train(model, batches(20, seed=3), lr=0.0, weight_decay=weight_decay)
    assert marks(gradients) == dead(activity)
    assert 0 < len(dead(activity)["2"]) < 32 and len(dead(activity)["0"]) < 32


def test_below_a_layer_that_is_dead_altogether_nothing_learns():
    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(-50.0)
    activity, gradients = train(model)
    assert dead(activity) == {"0": [0, 1], "2": [0, 1, 2, 3, 4, 5]}
    assert marks(gradients) == {"0": [0, 1, 2, 3, 4], "2": [0, 1, 2, 3, 4, 5]}


def test_a_unit_that_was_dead_for_a_time_only_has_learned():
    model = mlp()
    units = find_units(model, batches()[0][0])
    gradients = UnitGradients(model, units)
    for step, (x, y) in enumerate(batches()):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        gradients.look()
        if step == 0:
            assert marks(gradients.statistics())["0"] == [0, 1]
            with torch.no_grad():
                model[0].bias[0] = 1.0
    assert marks(gradients.statistics())["0"] == [1]
    gradients.reset()
    assert all(stat.count == 0 and bool(stat.mean_abs.isnan().all()) for stat in gradients.statistics().values())
    assert marks(gradients.statistics()) == {"0": [], "2": []}


# --- where the two modes say different things ------------------------------------------------------------------------


def test_a_unit_that_nobody_reads_fires_and_does_not_learn():
    model = mlp()
    with torch.no_grad():
        model[2].weight[:, 4] = 0.0
    activity, gradients = train(model, lr=0.0)
    assert dead(activity)["0"] == [0, 1] and marks(gradients)["0"] == [0, 1, 4]


def test_a_saturated_unit_fires_and_does_not_learn():
    model = mlp(nn.ReLU6)
    with torch.no_grad():
        model[0].bias[4] = 50.0
    activity, gradients = train(model, lr=0.0)
    assert dead(activity)["0"] == [0, 1] and marks(gradients)["0"] == [0, 1, 4]


def test_a_slope_below_zero_lets_silent_units_learn():
    activity, gradients = train(mlp(nn.LeakyReLU))
    assert int(activity["0"].fired[:2].sum()) == 0  # they would be dead behind a ReLU
    assert marks(gradients) == {"0": [], "2": []}


def test_a_penalty_in_the_loss_hides_dead_units_and_one_in_the_optimizer_does_not():
    def penalty(model):
        return 0.01 * sum(parameter.square().sum() for parameter in model.parameters())

    activity, gradients = train(mlp(), penalty=penalty, lr=0.0)
    assert dead(activity) == {"0": [0, 1], "2": [3]} and marks(gradients) == {"0": [], "2": []}
    activity, gradients = train(mlp(), weight_decay=0.01)
    assert marks(gradients) == dead(activity) == {"0": [0, 1], "2": [3]}


def test_frozen_parameters_tell_nothing():
    model = mlp()
    model[0].bias.requires_grad_(False)
    units = find_units(model, batches()[0][0])
    gradients = UnitGradients(model, units)
    assert gradients.unreadable == {"0": "the bias of `0` is frozen"} and set(gradients.statistics()) == {"2"}
    model[2].bias.requires_grad_(False)
    with pytest.raises(UserError, match=r"group '0': the bias of `0` is frozen\); watch their activations"):
        UnitGradients(model, units)


def test_a_parameter_frozen_on_the_way_is_passed_over():
    model = mlp()
    gradients = UnitGradients(model, find_units(model, batches()[0][0]))
    for step, (x, y) in enumerate(batches(4)):
        model[0].bias.requires_grad_(step < 2)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        gradients.look()
    stats = gradients.statistics()
    assert (stats["0"].count, stats["2"].count) == (2, 4)
    assert marks(stats) == {"0": [0, 1], "2": [3]}


class OwnRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x, normalized_shape=(x.shape[-1],), weight=self.weight)


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(5, bias=False), lambda: nn.RMSNorm(5), lambda: OwnRMSNorm(5)])
def test_without_a_bias_the_normaliser_tells(norm):
    model = nn.Sequential(nn.Linear(4, 5), norm(), nn.ReLU(), nn.Linear(5, 3))
    units = find_units(model, torch.randn(2, 4))
    assert units["0"].norm == "1"
    assert units["0"].reason == "`1` normalises it together with other units"
    gradients = UnitGradients(model, units)
    x, y = batches(1)[0]
    F.cross_entropy(model(x), y).backward()
    gradients.look()
    torch.testing.assert_close(gradients.statistics()["0"].mean_abs, model[1].weight.grad.abs().double())


def test_without_a_bias_and_a_normaliser_nothing_tells():
    for norm, reason in (
        (nn.BatchNorm1d(5, affine=False), "`1` has no bias and no weight"),  # of the layer it is as good as zero
        (nn.Identity(), "`0` has no bias"),
    ):
        model = nn.Sequential(nn.Linear(4, 5, bias=not reason.startswith("`0`")), norm, nn.ReLU(), nn.Linear(5, 3))
        with pytest.raises(UserError, match=reason):
            UnitGradients(model, find_units(model, torch.randn(2, 4)))


@pytest.mark.parametrize("to_none", [True, False])
def test_a_layer_that_is_not_used_is_told_apart_only_if_gradients_are_none(to_none):
    model = Net(
        lambda m, x: m.c(F.relu(m.a(x)) + (F.relu(m.b(x)) if m.both else 0)),
        a=nn.Linear(4, 5),
        b=nn.Linear(4, 5),
        c=nn.Linear(5, 3),
    )
    model.both = True
    data = batches(3)
    units = find_units(model, data[0][0])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.both = False
    gradients = UnitGradients(model, units)
    for x, y in data:
        model.zero_grad(set_to_none=to_none)
        F.cross_entropy(model(x), y).backward()
        gradients.look()
    stats = gradients.statistics()
    assert (stats["a"].count, stats["b"].count) == (3, 0 if to_none else 3)
    assert marks(stats)["b"] == ([] if to_none else [0, 1, 2, 3, 4])


# --- how people train ------------------------------------------------------------------------------------------------


def test_gradients_that_are_added_up_before_a_step():
    model, data = mlp(), batches(6)
    units = find_units(model, data[0][0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with watch_gradients(model, units, optimizer) as gradients:
        for number, (x, y) in enumerate(data):
            F.cross_entropy(model(x), y).backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
    stats = gradients.statistics()
    assert stats["0"].count == 3 and marks(stats) == {"0": [0, 1], "2": [3]}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_gradients_that_are_scaled(optimizer):
    found = []
    for enabled in (False, True):
        model = mlp()
        units = find_units(model, batches()[0][0])
        steps = optimizer(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=enabled)
        with watch_gradients(model, units, steps) as gradients:
            for x, y in batches():
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                    loss = F.cross_entropy(model(x), y)
                steps.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(steps)
                scaler.update()
        found.append(marks(gradients.statistics()))
    assert found == [{"0": [0, 1], "2": [3]}] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_small_gradients_do_not_vanish_in_the_sums(dtype):
    model = mlp().to(dtype)
    gradients = UnitGradients(model, find_units(model, torch.randn(2, 4, dtype=dtype)))
    least = torch.finfo(dtype).tiny
    for value in (0.0, least, 0.0, 0.0):
        for layer in (model[0], model[2]):
            layer.bias.grad = torch.full_like(layer.bias, value)
        gradients.look()
    stats = gradients.statistics()
    assert marks(stats) == {"0": [], "2": []}
    if dtype != torch.float64:
        assert stats["0"].mean_abs.tolist() == [least / 4] * 5


def test_a_gradient_that_is_not_finite_is_not_zero():
    model = mlp()
    gradients = UnitGradients(model, find_units(model, torch.randn(2, 4)))
    model[0].bias.grad = torch.tensor([0.0, float("nan"), float("inf"), -float("inf"), -1.0])
    gradients.look()
    assert marks(gradients.statistics())["0"] == [0]


def test_neither_hooks_nor_anything_else_stays():
    model = mlp()
    before = hooks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    units = find_units(model, torch.randn(2, 4))
    with pytest.raises(KeyError), watch_gradients(model, units, optimizer):
        assert hooks(model) == before and len(optimizer._optimizer_step_pre_hooks) == 1
        raise KeyError
    assert len(optimizer._optimizer_step_pre_hooks) == 0


def test_groups_that_do_not_fit():
    with pytest.raises(UserError, match="no layer 'nowhere'"):
        UnitGradients(mlp(), [UnitGroup("nowhere", 5, "relu", at="1")])
    with pytest.raises(UserError, match="no module 'nowhere'"):
        UnitGradients(mlp(), [UnitGroup("0", 5, "relu", norm="nowhere", at="1")])
    assert UnitGradients(nn.Linear(3, 2), []).statistics() == {}


def test_looking_asks_the_device_for_nothing():
    """On the meta device there are no values: whatever asks for one raises."""
    torch.manual_seed(0)
    model = Residual()
    units = find_units(model, torch.randn(2, 18))
    model.to("meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch_gradients(model, units, optimizer) as gradients:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(8, 18, device="meta")).sum().backward()
            optimizer.step()
        stats = gradients.statistics()
    assert {name: (stat.count, stat.mean_abs.device.type) for name, stat in stats.items()} == {
        "a": (2, "meta"),
        "b": (2, "meta"),
    }
    assert measures.not_learning_fraction(stats).device.type == "meta"
