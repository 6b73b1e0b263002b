"""Every strategy runs on every benchmark, on a few samples, with the benchmark's own network and optimizer, and acts.

A run takes what a run of the command line takes: `benchmarks.training.train`. By default every strategy runs on one
benchmark of each kind (network, optimizer, heads, online or not), and some strategy on every other benchmark and
scenario; with PLASTICITY_EVERY=1 in the environment, every one on all of them, which takes minutes.
"""

import json
import math
import os

import avalanche.training
import pytest
import torch
from strategy_runs import BESIDE, COUNTS, acting, acts, with_dead_units

from benchmarks import data
from benchmarks.models import MODELS
from benchmarks.resnet import WIDTHS
from benchmarks.settings import resolve
from benchmarks.streams import BENCHMARKS
from benchmarks.training import train
from strategies import STRATEGIES

SHAPES = {"digits": (64,), "mnist": (1, 28, 28), "fashion": (1, 28, 28), "tiny-imagenet": (3, 64, 64)}
CLASSES = 12
AT_FIRST = frozenset(STRATEGIES)
"""Before any test: studies register strategies of their own when they are looked up."""


def few_images(name, directory=None):
    """Two images of each class for training, one to test."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for each in (2, 1):
        labels = torch.arange(CLASSES).repeat_interleave(each)
        highest = 17 if name == "digits" else 256
        shape = (len(labels), *SHAPES.get(name, (3, 32, 32)))
        parts += [torch.randint(highest, shape, generator=generator, dtype=torch.uint8), labels]
    return data.ImageData(*parts)


def cases():
    """Names of benchmark, scenario and strategy."""
    kinds, found, turn = set(), [], 0
    for benchmark in BENCHMARKS.values():
        for scenario in sorted(benchmark.scenarios, key=lambda each: each != benchmark.scenario):
            kind = (benchmark.model, benchmark.optimizer, scenario == "task", benchmark.online is not None)
            first = kind not in kinds and scenario == benchmark.scenario
            kinds |= {kind} if first else set()
            names = list(STRATEGIES)
            if not first and os.environ.get("PLASTICITY_EVERY") != "1":
                names = [names[turn % len(names)]]
                turn += 1
            found += [(benchmark.name, scenario, name) for name in names]
    return found


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Runs a strategy shortly; returns the result and the Avalanche strategy."""
    monkeypatch.setattr("benchmarks.streams.builders.load", few_images)
    for model, build in list(MODELS.items()):
        monkeypatch.setitem(MODELS, model, lambda *shape, build=build: with_dead_units(build(*shape)))
    seen = []
    whole = avalanche.training.Naive.train

    def spied(self, *args, **kwargs):
        seen.append(self)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(avalanche.training.Naive, "train", spied)

    def run(benchmark, strategy, **settings):
        epochs = 1 if BENCHMARKS[benchmark].model == "slim-resnet18" else 2  # it takes most of the time
        settings = {"experiences": 2, "epochs": epochs, "batch_size": 6, **settings}
        result = train(resolve(benchmark, strategy, 0, **settings), tmp_path / "metrics.jsonl")
        return result, seen[-1]

    return run


def finite(value):
    """Whether nothing in nested numbers is infinite or not a number."""
    if isinstance(value, dict | list):
        return all(finite(part) for part in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def test_all_strategies_are_known():
    assert set(COUNTS) | set(BESIDE) == AT_FIRST


@pytest.mark.parametrize(("benchmark", "scenario", "strategy"), cases())
def test_every_strategy_on_every_benchmark(benchmark, scenario, strategy, trained):
    result, avalanche_strategy = trained(benchmark, acting(strategy), scenario=scenario)
    assert finite(result) and json.dumps(result, allow_nan=False)
    for index in result["scored"]:
        assert 0 <= result["learning_accuracy"][index] <= 1
    assert all(0 <= accuracy <= 1 for accuracy in result["online_accuracy"])
    assert len(result["units"]) == 2 and all(entry["layers"] for entry in result["units"])
    assert all(bool(torch.isfinite(value).all()) for value in avalanche_strategy.model.state_dict().values())
    assert acts(strategy, avalanche_strategy, result["treatments"])


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_dead_channels_of_a_residual_network_are_removed_without_a_trace(scenario, trained):
    """Within a block; the channels that shortcuts add up stay, whether dead or not."""
    result, strategy = trained("split-cifar10", "demon-pruning-shrink", scenario=scenario)
    removed = cheaper = 0
    for stage, width in enumerate(WIDTHS, start=1):
        for block in strategy.model.get_submodule(f"layer{stage}"):
            left = len(block.conv1.weight)
            assert block.bn1.weight.shape == block.bn1.running_mean.shape == (left,)
            assert block.conv2.weight.shape[:2] == (width, left) and len(block.bn2.weight) == width
            removed += width - left
            cheaper += (width - left) * (9 * block.conv1.weight.shape[1] + 2 + 9 * width)
    assert len(strategy.model.layer1[0].conv1.weight) == 20 - 3
    assert removed == sum(entry["removed"] for entry in result["treatments"])
    assert all(entry["output_shift"] < 1e-5 for entry in result["treatments"])
    whole, _ = trained("split-cifar10", "naive", scenario=scenario)
    assert whole["parameters"] - result["parameters"] == cheaper
