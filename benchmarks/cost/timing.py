"""Times that can be compared on a noisy machine: interleaved blocks, and ratios within each round."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Block = Callable[[], float]
"""Runs a piece of work and returns how many seconds a unit of it took."""

BUILDS = 6
"""So often networks are built anew where it matters: where they come to lie in memory shows in some steps."""

Tell = Callable[[str, int, int], None]
"""Is told, before each block, its name, the number of the round from 1, and how many rounds there are."""

_tell: ContextVar[Tell] = ContextVar("tell", default=lambda name, number, rounds: None)


class Ratio(NamedTuple):
    """How long one thing takes, in units of another or in seconds: the median over rounds, with its 95% interval."""

    median: float
    low: float
    high: float
    rounds: int


def clock(device: torch.device) -> float:
    """Return the time in seconds, once a device has finished what it was told to do.

    Where one thread of a CPU computes it all, it is the process's own time, to which other work on the machine adds
    nothing.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


@contextmanager
def telling(tell: Tell) -> Iterator[None]:
    """Let something be told of every block that begins; no block is timed meanwhile."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


def interleave(blocks: Mapping[str, Block], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Run blocks in turn, every second round in reverse, so that what disturbs the machine disturbs all alike.

    Args:
        blocks: By name.
        rounds: How often each is run and counted.
        warm_up: Rounds before, which do not count.

    Returns:
        What each returned in each round.
    """
    times: dict[str, list[float]] = {name: [] for name in blocks}
    names = list(blocks)
    for number in range(warm_up + rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            _tell.get()(name, number + 1, warm_up + rounds)
            seconds = blocks[name]()
            if number >= warm_up:
                times[name].append(seconds)
    return times


def interleave_builds(build: Callable[[], Mapping[str, Block]], rounds: int) -> dict[str, list[float]]:
    """Run blocks in turn as `interleave` does, and build them anew several times on the way, each with a round before.

    Args:
        build: Makes the blocks, by name.
        rounds: How often each is run and counted, of all builds together.
    """
    times: dict[str, list[float]] = {}
    for number in range(min(BUILDS, rounds)):
        for name, found in interleave(build(), rounds // BUILDS + (number < rounds % BUILDS)).items():
            times.setdefault(name, []).extend(found)
    return times


def ratio(times: Mapping[str, list[float]], name: str, base: str) -> Ratio:
    """Compare two blocks by the median of their ratios within a round.

    Args:
        times: As `interleave` returned them.
        name: The block in question.
        base: The one that it is measured by.
    """
    return summary(np.array(times[name]) / np.array(times[base]))


def summary(figures: Sequence[float] | NDArray[np.float64]) -> Ratio:
    """Return the median of figures, one of each round, with a 95% bootstrap interval of it."""
    drawn = np.random.default_rng(0).choice(figures, (2000, len(figures)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Ratio(float(np.median(figures)), float(low), float(high), len(figures))
