"""What `--jobs` saves: two runs at a time against the same runs one after the other, a thread each."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.computing import Computing
from benchmarks.cost.bare import BareSteps
from benchmarks.cost.table import Line
from benchmarks.cost.timing import clock, interleave, ratio
from benchmarks.evaluating import experience_tensors
from benchmarks.models import build_model
from benchmarks.streams import StreamSettings, get_benchmark, stream_shape

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = "permuted-digits"
EXPERIENCES, PLAIN_EXPERIENCES = 150, 30


def measure(
    rounds: int,
    jobs: int = 2,
    experiences: int = EXPERIENCES,
    run: Callable[[list[str]], object] | None = None,
    device: str = "cpu",
    computing: Computing | None = None,
) -> Iterator[Line]:
    """Measure as many runs of naive as there are processes, from start to end of the command, beside plain processes.

    What plain processes take that do the same training at the same time, and nothing else, over the same one after the
    other, is what the machine allows: processors share memory, caches and the power that sets their pace.

    Args:
        rounds: Interleaved rounds.
        jobs: Processes.
        experiences: Length of the runs.
        run: Takes the words after `python -m benchmarks`; None: runs that command.
        device: Where networks are trained.
        computing: How they compute; None: as by default.
    """
    run, computing = run or _command, computing or Computing()
    words = [*f"run {BENCHMARK} --strategies naive --seeds {jobs} --experiences {experiences}".split()]
    words += ["--device", device, *computing.words()]

    def block(at_a_time: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            run([*words, "--out", folder, "--jobs", str(at_a_time)])
            return time.perf_counter() - start

    plain_experiences = min(experiences, PLAIN_EXPERIENCES)
    with plain_processes(jobs, plain_experiences, device, computing) as plain:
        blocks = {
            "one": lambda: block(1),
            "all": lambda: block(jobs),
            "plain one": lambda: sum(_seconds([pipe]) for pipe in plain),
            "plain all": lambda: _seconds(plain),
        }
        times = interleave(blocks, rounds, warm_up=0)
    unit = "time / one after the other"
    case = f"{BENCHMARK}, {jobs} runs of {experiences} experiences"
    yield Line("processes", case, f"--jobs {jobs}", unit, ratio(times, "all", "one"))
    case = f"{BENCHMARK}, the training of {plain_experiences} experiences, {jobs} times"
    yield Line("processes", case, f"{jobs} plain processes", unit, ratio(times, "plain all", "plain one"))


def _command(words: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", *words]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)


@contextmanager
def plain_processes(count: int, experiences: int, device: str, computing: Computing) -> Iterator[list[Connection]]:
    """Start processes that train when they are told to, in one thread each, and end them.

    Args:
        count: Processes.
        experiences: How many they train on each time.
        device: Where.
        computing: How the networks compute.

    Yields:
        A pipe to each, which is ready: it trains for every message, and then answers.
    """
    context = multiprocessing.get_context("spawn")
    pipes, started = [], []
    for seed in range(count):
        pipe, other = context.Pipe()
        process = context.Process(target=_train_when_told, args=(other, seed, experiences, device, computing))
        process.start()
        other.close()
        pipes.append(pipe)
        started.append(process)
    try:
        for pipe in pipes:
            pipe.recv()
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in started:
            process.join()


def _seconds(pipes: Sequence[Connection]) -> float:
    """Let processes train at the same time; returns how long that took."""
    start = time.perf_counter()
    for pipe in pipes:
        pipe.send(None)
    for pipe in pipes:
        pipe.recv()
    return time.perf_counter() - start


def _train_when_told(pipe: Connection, seed: int, experiences: int, device: str, computing: Computing) -> None:
    train = _training(seed, device, computing)
    train(1)  # what a first pass makes ready is no part of the times
    pipe.send(None)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        train(experiences)
        pipe.send(None)


def _training(seed: int, device: str, computing: Computing) -> Callable[[int], None]:
    """Make the network and optimizer of a run; returns what trains on its first experience so many times."""
    torch.set_num_threads(1)
    benchmark = get_benchmark(BENCHMARK)
    settings = benchmark.resolve(StreamSettings(seed, 2))
    stream = benchmark.build(settings)
    data = experience_tensors(stream.streams["train"][0])
    torch.manual_seed(seed)
    where = torch.device(device)
    model = computing.network(build_model(benchmark.model, *stream_shape(stream, settings)).to(where))
    optimizer = torch.optim.Adam(model.parameters(), lr=benchmark.learning_rate, fused=True)
    steps = BareSteps(model, optimizer, computing, where)
    inputs, labels = data.inputs.to(where), data.targets.to(where)

    def train(experiences: int) -> None:
        for _ in range(experiences * benchmark.epochs):
            for rows in torch.randperm(len(labels)).to(where).split(benchmark.batch_size):
                steps.step(inputs[rows], labels[rows])
        clock(where)  # waits for the device

    return train
