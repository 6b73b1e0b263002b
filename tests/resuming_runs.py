"""What tests of checkpoints share: runs that stop where they are told to, and that go on."""

import json

import torch
from strategy_runs import with_dead_units
from torch import nn

from benchmarks.models import build_model, register_model
from benchmarks.resuming.files import CheckpointFiles
from benchmarks.resuming.keeping import Keeping
from benchmarks.resuming.plain import from_bytes
from benchmarks.settings import resolve
from benchmarks.training import train


class StoppedError(Exception):
    """Where a test stops a run."""


class Stopping(Keeping):
    """Stops right after saving within an experience, at a place (experience, mini-batch or part, counted from 1)."""

    def __init__(self, folder, said, within=None):
        super().__init__(CheckpointFiles(folder, {"run": "this"}), 1.0, said.append)
        self.within = within
        self._turns = 0

    def _is_time(self):
        if self.within is None or self.place[0] != self.within[0]:
            return False
        self._turns += 1
        return self._turns == self.within[1]

    def _write(self, *more):
        super()._write(*more)
        if self._turns:
            raise StoppedError

    def last(self):
        """The state after the last experience, but for what never is the same twice."""
        state = from_bytes(self._boundary)
        assert set(state.pop("stopwatch")) == {"seconds", "process_seconds"}
        return state


def dying(num_classes, input_shape, task_labels):
    """A network with units that are dead from the start."""
    return with_dead_units(build_model("mlp-3x128", num_classes, input_shape, task_labels))


def dropping(num_classes, input_shape, task_labels):
    """A network that drops features at random."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )


register_model("dying", dying)
register_model("dropping", dropping)


def settings(strategy, benchmark="permuted-digits", **asked):
    return resolve(benchmark, strategy, 0, **{"experiences": 3, "model": "dying", **asked})


def whole(run, folder):
    """An uninterrupted run: its result, its metric values and its last state."""
    folder.mkdir()
    keeping = Stopping(folder, said := [])
    result = train(run, folder / "metrics.jsonl", keeping=keeping)
    assert said == []
    return without_times(result), (folder / "metrics.jsonl").read_bytes(), keeping.last()


def interrupted(run, folder, within=(1, 5), after=2):
    """The same of a run that stops within an experience, then after one, and goes on each time in a new attempt."""
    folder.mkdir()
    metrics, said = folder / "metrics.jsonl", []
    try:
        train(run, metrics, keeping=Stopping(folder, said, within))
        raise AssertionError("nothing was saved within the experience")
    except StoppedError:
        pass

    def stop(done):
        if done == after:
            with metrics.open("a") as file:  # what comes after the checkpoint does not count
                file.write('{"name": "torn')
            raise StoppedError

    try:
        train(run, metrics, stop, keeping=Stopping(folder, said))
        raise AssertionError("did not get to the end of the experience")
    except StoppedError:
        pass
    keeping = Stopping(folder, said)
    result = train(run, metrics, keeping=keeping)
    size = run.experiences
    assert said == [f"goes on after {within[0]} of {size} experiences", f"goes on after {after} of {size} experiences"]
    return without_times(result), metrics.read_bytes(), keeping.last()


def without_times(result):
    assert result["seconds"] > 0 and result["processor"].keys() == {"seconds"} and result["processor"]["seconds"] > 0
    return json.dumps(
        {key: value for key, value in result.items() if key not in ("seconds", "processor")}, sort_keys=True
    )


def same(one, other, where="state"):
    """Compare two states number by number; returns where they differ first, or None."""
    if type(one) is not type(other):
        return where
    if isinstance(one, dict):
        if list(one) != list(other):
            return where
        found = (same(one[key], other[key], f"{where}[{key!r}]") for key in one)
        return next((each for each in found if each), None)
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return where
        found = (same(a, b, f"{where}[{number}]") for number, (a, b) in enumerate(zip(one, other, strict=True)))
        return next((each for each in found if each), None)
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.isnan(), other.isnan())
        return None if alike and torch.equal(one.nan_to_num(), other.nan_to_num()) else where
    return None if one == other or one != one else where


def require_same(one, other):
    assert one[0] == other[0]
    assert one[1] == other[1]
    assert same(one[2], other[2]) is None
