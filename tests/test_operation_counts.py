"""What methods cost, counted instead of timed: operations by layer, not by unit, and nothing waits for the device."""

import pytest
import torch
from step_driver import Operations, Steps, mlp, operations
from torch import nn

from strategies import STRATEGIES

RULES = {
    "continual-backprop": ":replacement_rate=0.5:maturity=0:weights_every=1",
    "self-normalized-resets": ":maximum_age=6:check_every=1:refresh=2:enough=1",
    "hare-tortoise": ":reset_every=2",
    "normalize-and-project": ":normaliser_decay=0.1",
    "redo": ":every=100",
}
"""Whatever a method does at times, it does in every counted step, or in none."""
LEFT_OUT = {"naive", "fresh", "replay"}
NAMES = [name + RULES.get(name, "") for name in STRATEGIES if name not in LEFT_OUT]
TREATMENTS = [
    "synaptic-stripping",
    "synaptic-stripping-whitaker2023",
    "hyper-hypo",
    "hyper-hypo:mode=prune",
    "demon-pruning",
    "redo:every=4",
    "gradient-dormancy:every=4",
    "shrink-perturb",
    "shrink-perturb-interpolate",
    "fire",
]
"""What comes between experiences, after epochs, or in the fourth step; `dash` looks at all mini-batches there are."""
BUILDS = {"mlp": (lambda: mlp(3, 8), (5,)), "convolutional": (lambda: convolutional(), (3, 7, 7))}


def convolutional():
    """With batch norm, groups, a flatten and a layer norm."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.LayerNorm(6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )


@pytest.mark.parametrize("name", NAMES)
def test_steps_take_as_many_operations_for_many_units_as_for_few(name):
    few, plugins = operations(name, mlp(3, 8))
    many, _ = operations(name, mlp(3, 40))
    assert few == many
    if name.startswith("continual-backprop"):
        assert all(sum(counts) >= 8 for counts in plugins[0].replacements().values())


@pytest.mark.parametrize("name", NAMES)
def test_operations_of_a_step_grow_with_layers_as_a_straight_line(name):
    two, three, four = (operations(name, mlp(depth, 8))[0] for depth in (3, 4, 5))
    assert four - three == three - two


@pytest.mark.parametrize("name", TREATMENTS)
def test_treatments_take_as_many_operations_for_many_units_as_for_few(name):
    """With one dead unit in each layer of 8, and with 20 in each of 40; stripping may need more rounds for these."""
    counts = []
    for width, dead in ((8, 1), (40, 20)):
        torch.manual_seed(0)
        driver = Steps(name, mlp(3, width), (5,))
        for _ in range(3):
            driver.step()
        with torch.no_grad():
            for layer in driver.strategy.model[:-1:2]:
                layer.bias[:dead] = -1e4
        (plugin,) = driver.strategy.plugins
        with Operations() as counted:
            if ":every=" in name:
                driver.step()
            else:
                plugin.intervene(driver.strategy)
        (report,) = plugin.history
        counts.append(counted.count / (1 + report.get("rounds", 0)))
    assert 20 < counts[1] < 1.4 * counts[0]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16, channels last"])
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_the_device(name, build, half, monkeypatch):
    """On the device "meta" nothing has a value, so that whatever looks at one raises."""
    if (name, build) == ("crelu", "convolutional"):
        return  # which has no place for it
    make, shape = BUILDS[build]
    driver = Steps(name, make(), shape, "meta", half)
    for place in "treating", "observing", "demon_pruning":  # where nothing has a value units cannot be found
        monkeypatch.setattr(f"plasticity.plugins.{place}.find_units", lambda *args, **kwargs: driver.units)
    for _ in range(4):
        driver.step()
    assert all(parameter.device.type == "meta" for parameter in driver.strategy.model.parameters())


def test_a_wait_is_seen():
    """What the test before would miss, it would miss for every method."""
    driver = Steps("l2", mlp(3, 8), (5,), "meta")
    driver.strategy.plugins[0].after_update = lambda strategy: float(strategy.loss.detach())
    with pytest.raises(RuntimeError, match="meta"):
        driver.step()
