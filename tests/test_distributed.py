"""Two processes that train copies of a network do as one on the mini-batches put together, bit for bit the same."""

import multiprocessing

import pytest
import torch
from avalanche_plugins import PLUGINS
from distributed_work import WORLD, lost, plain_loop, session, trained

from plasticity import distributed, plugins
from plasticity.loading import TensorLoaderPlugin
from plasticity.watching.unit_statistics import UnitStatistics

SPAWN = multiprocessing.get_context("spawn")
TOGETHER = [name for name in PLUGINS if name != "demon-pruning-shrink"]


def run(work, *each):
    """Run a function in two processes for each tuple of arguments, all at once; returns the exit codes."""
    processes = [SPAWN.Process(target=work, args=(rank, *rest)) for rest in each for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes have found, in one session for all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    assert run(session, (folder,)) == [0, 0]
    return [torch.load(folder / f"session-{rank}.pt", weights_only=False) for rank in range(WORLD)]


def equal(one, other):
    """Whether two nested results are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or (one != one and other != other)


def close(one, other):
    """Assert that numbers are the same but for the order of sums, and all else is equal."""
    if isinstance(one, torch.Tensor) and one.is_floating_point():
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            close(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    else:
        assert equal(one, other)


def test_a_plain_loop_is_as_one_process(ranks):
    first, second = (results["plain"] for results in ranks)
    assert equal(first, second)
    alone = plain_loop()
    close(first, alone)
    assert sum(int((~mask).sum()) for mask in alone["masks"].values()) > 0


@pytest.mark.parametrize("name", TOGETHER)
def test_every_plugin_does_as_in_one_process(name, ranks):
    first, second = (results["plugins"][name] for results in ranks)
    assert equal(first["weights"], second["weights"]) and equal(first["history"], second["history"])
    assert equal(first["metrics"], second["metrics"])
    close(first, trained(PLUGINS[name](), False))


def test_every_plugin_says_that_it_works_in_several_processes(ranks):
    kinds = [getattr(plugins, name) for name in plugins.__all__]
    assert all(kind.supports_distributed for kind in (*kinds, TensorLoaderPlugin))
    for results in ranks:
        assert equal(results["quick"], results["plugins"]["redo"])


def test_units_are_judged_by_the_same_batch_statistics(ranks):
    first, second = (results["normalised"] for results in ranks)
    assert equal(first["history"], second["history"])
    assert sum(report["recycled"] for report in first["history"]) > 0
    for name, value in first["weights"].items():
        assert "running" in name or torch.equal(value, second["weights"][name])


def test_what_cannot_be_right_is_refused_in_every_process(ranks):
    for results in ranks:
        refused = results["refused"]
        assert 'use mode="mask"' in refused["shrink"]
        assert "samples of each process apart" in refused["self-label"]
        assert "make the strategy's model a DistributedDataParallel" in refused["not wrapped"]
        for name in ("seeds", "steps", "step-wise"):
            assert "the processes have different weights, 'features.0.weight' first" in refused[name]
        assert "parameters that are added after it was made" in refused["growing"]
        assert "'classifier.classifiers." in refused["growing"]


def test_a_process_that_is_lost_is_told_of_soon(tmp_path):
    hows = "ends", "does-not-come", "ends-in-a-step"
    run(lost, *((how, tmp_path) for how in hows))
    own = torch.load(tmp_path / "ends-in-a-step.pt")
    assert "Connection" in own["message"] and own["seconds"] < 100  # PyTorch's
    for how in hows[:2]:
        found = torch.load(tmp_path / f"{how}.pt")
        assert found["message"].startswith("another process has ended, or has not come within the time limit: ")
        assert "\n" not in found["message"] and found["seconds"] < 100


def test_one_process_alone_is_left_as_it_is():
    tensors = [torch.rand(3)]
    statistics = {"0": UnitStatistics(torch.tensor([1]), 2, torch.tensor([0.5]), torch.tensor([0.5]))}
    batches = [(torch.rand(2, 3),)]
    assert distributed.group_of(torch.nn.Linear(2, 2)) is None
    assert distributed.add_up(tensors, None)[0] is tensors[0]
    assert distributed.of_all(statistics, None) == statistics
    assert distributed.batches_of_all(batches, 1, None)[0] is batches[0]
    distributed.require_agreement(torch.nn.Linear(2, 2), None, "nobody")
