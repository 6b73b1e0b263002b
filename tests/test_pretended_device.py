"""Whole runs of every strategy on a device that refuses what a GPU refuses: nothing is mixed, all is decided alike.

The device computes on the CPU (see `pretended_device`), so that networks end as they do there, bit for bit, unless a
method has random numbers of its own on every device.
"""

from functools import partial

import pytest
import torch
from pretended_device import DEVICE, OnDevice, WrongDeviceError, pretended
from step_driver import Steps
from strategy_runs import COUNTS, acting, with_dead_units
from test_every_benchmark import few_images
from test_operation_counts import BUILDS, NAMES
from torch import nn

from benchmarks import training
from benchmarks.cost import cases
from benchmarks.models import MODELS, mlp, pairs_conv
from benchmarks.settings import resolve
from plasticity import find_units, watch
from plasticity.metrics import plasticity_metrics
from strategies import STRATEGIES

OWN_NUMBERS = {"shrink-perturb-step", "demon-pruning", "upgd"}
"""They draw from a generator of the device, so that their noise is another one."""
LEFT_OUT = {
    "crelu": "it works out its widths on the device that is used for this",
    "demon-pruning-shrink": "parameters of a subclass of tensors cannot become smaller",
}


def test_tensors_there_have_values_and_may_not_be_mixed_with_others():
    x = torch.randn(3, 4)
    with pretended() as asked:
        there = x.to(DEVICE)
        assert isinstance(there, OnDevice) and there.device == DEVICE
        assert torch.equal((there @ there.T).cpu(), x @ x.T) and float(there.sum()) == float(x.sum())
        assert asked["_to_copy.default"] == 1 and asked["_local_scalar_dense.default"] == 1
        for mixed in (
            lambda: there + x,
            lambda: there[:, 0] + x[:, 0],
            lambda: x[there[:, 0].argsort()],
            lambda: there.index_select(0, torch.tensor([1])),
            lambda: x.add_(there),
            lambda: torch.cat([there, x]),
            lambda: torch.where(there > 0, there, x),
            lambda: nn.Linear(4, 2)(there),
        ):
            with pytest.raises(WrongDeviceError):
                mixed()
        # What a GPU allows, too:
        assert torch.equal((there * torch.tensor(2.0)).cpu(), x * 2)
        assert torch.equal(there[torch.tensor([2, 0])].cpu(), x[[2, 0]])
        there[1] = 0
        x[0] = there[1]
        assert not x[0].any() and torch.zeros(2, device=DEVICE).tolist() == [0, 0]


def test_where_the_host_waits_is_counted():
    x = torch.arange(12.0).reshape(3, 4)
    with pretended() as asked:
        there = x.to(DEVICE)
        mask, place = there > 5, torch.tensor([2, 0])
        asked.clear()
        there[mask] = 0.0
        there.masked_fill_(mask, 1.0)
        there[mask.any(1).to(torch.int64)] += there.mean()
        there.to(DEVICE, torch.float64).copy_(there)
        place.to(DEVICE, non_blocking=True)
        assert not +asked
        waiting = (
            lambda: there[mask],
            lambda: there[place],
            lambda: place.to(DEVICE),
            lambda: there.copy_(x),
            lambda: there.sum().item(),
            lambda: bool(mask.any()),
            lambda: mask.nonzero(),
            lambda: there.cpu(),
            lambda: there[0].tolist(),
        )
        for number, wait in enumerate(waiting, start=1):
            wait()
            assert asked.total() == number


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_there(name, build):
    """Not for a copy to the device either, which the device "meta" does not show."""
    if (name, build) == ("crelu", "convolutional"):
        return  # which has no place for it
    make, shape = BUILDS[build]
    with pretended() as asked:
        driver = Steps(name, make(), shape, "meta")
        for _ in range(3):
            driver.step()
        asked.clear()
        for _ in range(4):
            driver.step()
    assert not +asked


def test_watched_steps_do_not_wait_nor_do_statistics():
    with pretended() as asked:
        model, inputs = pairs_conv(4, (3, 32, 32), False).to(DEVICE), torch.randn(6, 3, 32, 32).to(DEVICE)
        labels, units = (torch.arange(6) % 4).to(DEVICE), find_units(model, inputs)
        with watch(model, units, inputs=True, features=16) as activity:
            for number in range(4):
                if number == 2:
                    asked.clear()
                model.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
            found = activity.statistics()
        assert not +asked and all(isinstance(stat.fired, OnDevice) for stat in found.values())


@pytest.mark.parametrize("settings", [{}, {"every": 2}, {"measures": ["NotLearningUnits"]}], ids=str)
def test_metrics_copy_one_tensor_to_the_host_for_a_report_and_none_before(settings):
    class Counted(cases.SupervisedPlugin):
        def before_training_iteration(self, strategy, *args, **kwargs):
            self.iterations = getattr(self, "iterations", 0) + 1
            if self.iterations == cases.StepTimer.SKIPPED + 1:
                asked.clear()

        def after_training_epoch(self, strategy, *args, **kwargs):
            self.found = +asked
            asked.clear()

    counted = Counted()
    case = cases.Case("small", "mlp-2x16", (8,), 8, partial(torch.optim.SGD, lr=0.1, foreach=False), 6)
    with pretended() as asked:
        trainer = cases.Trainer(case, DEVICE, [counted], [plasticity_metrics(epoch=True, **settings)])
        trainer.strategy.train(trainer.experience)
    assert counted.iterations == 9 and not counted.found and +asked == {"_to_copy.default": 1}


def test_networks_train_there_as_on_the_cpu():
    trained = []
    for device in ("cpu", DEVICE):
        with pretended():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
            model.to(device)
            assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())
            optimizer = torch.optim.Adam(model.parameters(), foreach=False)
            for _ in range(3):
                optimizer.zero_grad()
                inputs, labels = torch.randn(5, 2, 6, 6).to(device), torch.arange(5).to(device) % 4
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
            trained.append([parameter.detach().cpu() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a strategy shortly on a device; returns what its network, its reports and its measures are at the end."""
    monkeypatch.setattr("benchmarks.streams.builders.load", few_images)
    monkeypatch.setitem(MODELS, "small", lambda *shape: with_dead_units(mlp((8, 8), *shape)))
    optimizers = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}  # PyTorch has no fused ones for the device
    plain = {
        name: lambda p, fused, make=make, **asked: make(p, foreach=False, **asked) for name, make in optimizers.items()
    }
    monkeypatch.setattr(training, "_OPTIMIZERS", plain)

    def run(name, device):
        settings = resolve(
            "permuted-digits", name, 0, device=device, model="small", experiences=2, epochs=1, batch_size=8
        )
        with training._Run(settings, tmp_path / "metrics.jsonl") as found:
            result = found.complete(lambda done: None, None)
            weights = {name: p.detach().cpu() for name, p in found.strategy.model.named_parameters()}
        return weights, result

    return run


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in LEFT_OUT])
def test_every_strategy_decides_there_as_on_the_cpu(name, run):
    expected, result = run(acting(name), "cpu")
    with pretended():
        found, there = run(acting(name), "meta")
    same = partial(all, [torch.equal(expected[key], found[key]) for key in expected])
    assert list(found) == list(expected) and same() != (name in OWN_NUMBERS)
    if name not in OWN_NUMBERS:
        told = [[(entry["units"], entry.get("samples")) for entry in each["treatments"]] for each in (result, there)]
        assert told[0] == told[1] and bool(told[0]) == (name in COUNTS)
        dead = [[each["dead_fraction"] for each in one["units"]] for one in (result, there)]
        assert dead[0] == pytest.approx(dead[1]) and there["accuracy_matrix"] == result["accuracy_matrix"]
