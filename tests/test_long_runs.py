"""Long runs take no more memory than short ones: counts of what is alive, after so many experiences and after more."""

import gc
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from resuming_runs import settings, without_times
from strategy_runs import acting

from benchmarks.cost.long_runs import Watch, watched
from benchmarks.data import as_inputs, load
from benchmarks.evaluating import ExperienceTensors, StreamTensors, experience_tensors, room
from benchmarks.observing import PastSamples
from benchmarks.resuming.buffers import BufferIndex, UnknownBufferError
from benchmarks.runner import run_one
from benchmarks.streams import StreamSettings, get_benchmark
from plasticity.loading import dataset_tensors

OF_THE_STREAM = 4
"""Objects of an experience that come to be counted once it was trained on: attribute dictionaries of the stream's own
data sets, which Python makes when these are first copied."""


@pytest.fixture(scope="module")
def alone():
    """A process in which there is nothing else: what other tests left alive in this one comes and goes at any time."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize(
    "name", ["naive", "synaptic-stripping", "hyper-hypo", "continual-backprop", "adaptive", "hare-tortoise"]
)
def test_a_run_twice_as_long_holds_no_more(name, alone):
    run = settings(acting(name), epochs=1, experiences=10, evaluate=2, model="mlp-2x16")
    series = alone.submit(watched, run, 5).result()
    assert series.done == [0, 5, 10] and len(series.seconds) == len(series.yards) == 10
    assert series.tensors[2] <= series.tensors[1]
    assert series.objects[2] - series.objects[1] <= 5 * OF_THE_STREAM


@pytest.mark.parametrize("name", ["naive", "continual-backprop"])
def test_an_experience_takes_as_many_steps_of_the_program_as_an_earlier_one(name, tmp_path):
    """Calls of functions, in Python and from it, from one report of the run to the next."""
    calls, looked_at = {}, (5, 11)

    def report(done):
        sys.setprofile(None)
        if done + 1 in looked_at:
            calls[done + 1] = 0

            def count(frame, event, argument):
                calls[done + 1] += event in ("call", "c_call")

            sys.setprofile(count)

    run = settings(acting(name), epochs=1, experiences=12, evaluate=2, model="mlp-2x16")
    gc.collect()
    gc.disable()  # garbage is found at any time, and what it calls then is counted
    try:
        run_one(run, tmp_path, [], report)
    finally:
        sys.setprofile(None)
        gc.enable()
    assert calls[5] == calls[11] > 10_000


@pytest.mark.parametrize("name", ["continual-backprop", "replay:mem_size=40"])
def test_checkpoints_do_not_grow_with_what_was_measured(name, tmp_path):
    """By as much as a result has of treatments and measures of units for one experience, let alone of accuracies."""
    sizes = {}

    def look(done):
        if done:
            latest = max(tmp_path.rglob("checkpoint-?"), key=lambda path: path.stat().st_mtime_ns)
            sizes[done] = latest.stat().st_size

    run = settings(acting(name), epochs=1, experiences=9, model="mlp-2x16")
    run_one(run, tmp_path, [], look)
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    each = len(json.dumps([result["units"][-1], result["treatments"][-1:]]))
    assert max(sizes.values()) - sizes[4] < each


def test_measuring_changes_nothing(tmp_path):
    run = settings("replay", epochs=1, model="dropping")
    results = []
    for number, report in enumerate((Watch(1, torch.device("cpu")), lambda done: None)):
        run_one(run, tmp_path / str(number), [], report)
        results.append(without_times(json.loads(next((tmp_path / str(number)).rglob("result.json")).read_text())))
    assert results[0] == results[1]


def test_a_permuted_stream_makes_inputs_when_they_are_read():
    """They are those of a data set permuted all at once, and no experience holds any of its own."""
    benchmark, data = get_benchmark("permuted-digits"), load("digits", None)
    stream = benchmark.build(StreamSettings(3, 4, "domain"))
    shuffle = torch.Generator().manual_seed(3)
    train, test = as_inputs("digits", data.train_x).flatten(1), as_inputs("digits", data.test_x).flatten(1)
    stored = set()
    for experience, tested in zip(stream.train_stream, stream.test_stream, strict=True):
        order = torch.randperm(64, generator=shuffle)
        for found, inputs, labels in (
            (experience.dataset, train[:, order], data.train_y),
            (tested.dataset, test[:, order], data.test_y),
        ):
            columns = dataset_tensors(found.eval())
            assert torch.equal(columns[0], inputs) and torch.equal(columns[1], labels)
            stored.add(found._flat_data._datasets[0].pixels.untyped_storage().data_ptr())
    assert len(stored) <= 2


def test_tests_that_are_not_kept_are_the_same():
    stream = get_benchmark("permuted-digits").build(StreamSettings(0, 3, "domain"))
    expected = [experience_tensors(experience) for experience in stream.test_stream]
    for space in (0, expected[0].inputs.nbytes, 2**30):
        tests = StreamTensors(stream.test_stream, room=space)
        for _ in range(2):
            for index, each in enumerate(expected):
                assert all(torch.equal(a, b) for a, b in zip(tests[index], each, strict=True))
        assert len(tests._kept) == min(3, space // expected[0].inputs.nbytes)
    assert room(0) == room(5) == 0 < room(None)


def slow_past(tests, experiences, limit):
    """Samples of the past, chosen anew from all of it."""
    share = max(1, limit // experiences)
    parts = []
    for index in range(max(0, experiences - limit), experiences):
        order = torch.randperm(len(tests[index].targets), generator=torch.Generator().manual_seed(index))
        parts.append([column[order[:share]] for column in tests[index]])
    return [torch.cat(column) for column in zip(*parts, strict=True)]


@pytest.mark.parametrize("calls", [range(1, 15), (2, 2, 3, 11, 14), (9, 14)])
def test_past_samples_are_those_chosen_from_all_of_the_past(calls):
    tests = [
        ExperienceTensors(torch.rand(size, 2), torch.full((size,), index), torch.zeros(size, dtype=torch.int64))
        for index, size in enumerate([20, 3, 50, 20, 1, 20, 7, 20, 20, 9, 30, 30, 2, 20])
    ]
    past = PastSamples(tests, limit=10)
    for experiences in calls:
        found = past.of(experiences)
        expected = slow_past(tests, experiences, 10)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Everything(BufferIndex):
    """Remembers every sample of every experience."""

    def forget_others(self):
        pass


def test_only_what_buffers_hold_is_remembered():
    from avalanche.training.storage_policy import ReservoirSamplingBuffer

    stream = get_benchmark("permuted-digits").build(StreamSettings(0, 6, "domain"))
    torch.manual_seed(0)
    buffer = ReservoirSamplingBuffer(50)
    few, everything, state = BufferIndex(stream.train_stream), Everything(stream.train_stream), {}
    for number, experience in enumerate(stream.train_stream):
        buffer.update_from_dataset(experience.dataset)
        if number == 3:  # goes on in another process
            few, again = BufferIndex(stream.train_stream), ReservoirSamplingBuffer(50)
            few.load(again, state)
            few.forget_others()
            assert len(few._places) <= 50 and few._known < 4
        state, expected = (index.state_of(buffer, number + 1) for index in (few, everything))
        few.forget_others()
        assert torch.equal(state["places"], expected["places"]) and len(few._places) <= 50
        assert torch.equal(state["weights"], expected["weights"])
    other = ReservoirSamplingBuffer(50)  # samples of before that it has not held until now
    other.update_from_dataset(stream.train_stream[0].dataset)
    assert torch.equal(few.state_of(other, 6)["places"], everything.state_of(other, 6)["places"])
    with pytest.raises(UnknownBufferError, match="in no experience so far"):
        other.update_from_dataset(get_benchmark("permuted-digits").build(StreamSettings(1, 1)).train_stream[0].dataset)
        few.state_of(other, 6)
