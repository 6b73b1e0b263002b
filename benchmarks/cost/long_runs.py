"""Whether long runs stay as they begin: memory, what lives in it, and the time of an experience, over a whole stream.

A run is done as `run` does it, with checkpoints, metric values and a result, in a process of its own, and is looked at
every so many experiences. It trains for one epoch on each: what takes ever longer shows best where training is short.
"""

import gc
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.computing import Computing
from benchmarks.cost.table import Line
from benchmarks.cost.timing import Ratio, clock
from benchmarks.models import build_model
from benchmarks.runner import run_one
from benchmarks.settings import RunSettings, resolve
from benchmarks.training import check
from plasticity.errors import UserError

BENCHMARK = "permuted-digits"
EXPERIENCES = 2000
EVALUATE, EPOCHS = 5, 1
STRATEGIES = ("naive", "synaptic-stripping", "continual-backprop", "adaptive")
LOOKS = 40
EDGE = 0.2
"""Of a run, what is early and what is late in it."""
BEGUN = 0.1
"""Of a run, what is left out of memory's growth, in which caches fill and plugins set themselves up."""
_YARD_STEPS, _YARD_BATCH = 20, 32
_STATM = Path("/proc/self/statm")

LEVEL = "MiB of memory after a tenth"
MEMORY, TENSORS, OBJECTS = (f"{what} more in 1,000 experiences" for what in ("MiB", "tensors", "objects"))
TIME = "time of an experience in the last fifth / in the first"


@dataclass(frozen=True)
class Asked:
    """Which runs.

    Args:
        strategies: Their names.
        experiences: Length of the stream.
        looks: How often each run is looked at.
        modules: Modules to import first, which register the strategies.
    """

    strategies: tuple[str, ...] = STRATEGIES
    experiences: int = EXPERIENCES
    looks: int = LOOKS
    modules: tuple[str, ...] = ()


@dataclass
class Series:
    """What was seen of a run.

    Attributes:
        done: Finished experiences at each look.
        resident: Memory of the process at each look, in MiB.
        tensors: Tensors that were alive at each look.
        objects: Objects that Python's garbage collector kept track of at each look, the tensors among them.
        seconds: Of each experience, in order.
        yards: Of the fixed piece of work that was done after each experience.
    """

    done: list[int] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    tensors: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    yards: list[float] = field(default_factory=list)


class Watch:
    """Looks at this process while a run goes on in it; call it with the number of finished experiences.

    Machines are not equally fast all the time. So a fixed piece of work, some training steps of a network in a bare
    loop, is timed after every experience, and an experience takes so many times that.

    Args:
        every: Experiences between two looks.
        device: Where the run is.

    Attributes:
        series: What was seen.
    """

    def __init__(self, every: int, device: torch.device):
        self.every = every
        self.device = device
        self.series = Series()
        self._yardstick = _yardstick(device)
        self._since: float | None = None

    def __call__(self, done: int) -> None:
        """Note the time of the experience, and look if it is time."""
        found = self.series
        if self._since is not None:
            found.seconds.append(clock(self.device) - self._since)
            found.yards.append(self._yardstick())
        if done % self.every == 0:
            objects, tensors = living()
            found.done.append(done)
            found.resident.append(resident())
            found.objects.append(objects)
            found.tensors.append(tensors)
        self._since = clock(self.device)


def living() -> tuple[int, int]:
    """Count the objects that the garbage collector keeps track of, without garbage, and the tensors among them."""
    gc.collect()
    found = gc.get_objects()
    return len(found), sum(issubclass(type(each), torch.Tensor) for each in found)


def resident() -> float:
    """Return how much memory this process takes, in MiB.

    Raises:
        UserError: If the system does not tell.
    """
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        raise UserError(f"long-runs reads how much memory is taken from {_STATM}, which is not here") from None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(asked: Asked, device: str, threads: int, computing: Computing | None = None) -> Iterator[Line]:
    """Measure long runs on permuted digits, one after the other, each in a process of its own.

    Args:
        asked: Which.
        device: Where networks are trained.
        threads: CPU threads.
        computing: How networks compute; None: as by default.

    Raises:
        UserError: If a name is unknown, or the stream is too short for so many looks.
    """
    if asked.experiences < asked.looks:
        raise UserError(f"a long run has at least {asked.looks} experiences, not {asked.experiences}")
    resident()  # so that it is told now, if this is not known here
    runs = [run_of(name, asked.experiences, device, threads, computing) for name in asked.strategies]
    check(runs)
    for run in runs:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            series = alone.submit(watched, run, asked.experiences // asked.looks, asked.modules).result()
        yield from figures(series, run)


def run_of(
    strategy: str, experiences: int, device: str = "cpu", threads: int = 1, computing: Computing | None = None
) -> RunSettings:
    """Return the settings of a long run."""
    return resolve(
        BENCHMARK,
        strategy,
        0,
        experiences=experiences,
        epochs=EPOCHS,
        evaluate=EVALUATE,
        device=device,
        threads=threads,
        computing=computing,
    )


def watched(run: RunSettings, every: int, modules: Sequence[str] = ()) -> Series:
    """Do a run as `run` does it, and return what was seen of it; its results are thrown away.

    Args:
        run: What to run.
        every: Experiences between two looks.
        modules: Modules to import first.
    """
    torch.set_num_threads(run.threads)
    watch = Watch(every, torch.device(run.device))
    with tempfile.TemporaryDirectory() as folder:
        run_one(run, Path(folder), list(modules), watch)
    return watch.series


def figures(series: Series, run: RunSettings) -> Iterator[Line]:
    """Return the figures of one run.

    Args:
        series: What was seen of it.
        run: What it was.
    """
    done = np.array(series.done, dtype=np.float64)
    begun = done >= BEGUN * run.experiences
    level = series.resident[int(begun.argmax())]
    found = {LEVEL: Ratio(level, level, level, 1)}
    for unit, values in ((MEMORY, series.resident), (TENSORS, series.tensors), (OBJECTS, series.objects)):
        found[unit] = growth(done[begun], np.array(values, dtype=np.float64)[begun])
    found[TIME] = slowing(np.array(series.seconds), np.array(series.yards))
    case = f"{run.benchmark}, {run.experiences} experiences"
    for unit, figure in found.items():
        yield Line("long-runs", case, run.strategy, unit, figure)


def growth(done: np.ndarray, values: np.ndarray) -> Ratio:
    """Fit a line through values by least squares.

    Args:
        done: Finished experiences.
        values: What there was then.

    Returns:
        What comes in 1,000 experiences, with a 95% interval from samples of the values drawn with repetition.
    """

    def slope(rows: np.ndarray) -> float:
        x = done[rows] - done[rows].mean()
        return float(1000 * (x @ values[rows]) / max(x @ x, 1e-12))

    return _with_interval(slope, len(done), slope(np.arange(len(done))))


def slowing(seconds: np.ndarray, yards: np.ndarray, blocks: int = LOOKS) -> Ratio:
    """Compare the time of late experiences with that of early ones.

    Args:
        seconds: Of each experience.
        yards: Of the fixed piece of work after each.
        blocks: How many stretches of the run to put together to one number each.

    Returns:
        The ratio of the means of late and early stretches, each in units of that work, with a 95% interval from samples
        of the stretches drawn with repetition.
    """
    parts = zip(np.array_split(seconds, blocks), np.array_split(yards, blocks), strict=True)
    taken = np.array([part.sum() / work.sum() for part, work in parts])
    count = max(1, round(EDGE * len(taken)))
    early, late = taken[:count], taken[-count:]

    def ratio(rows: np.ndarray) -> float:
        return float(late[rows % count].mean() / early[rows // count].mean())

    every = np.arange(count)
    return _with_interval(ratio, count * count, ratio(every * count + every), count)


def _with_interval(
    statistic: Callable[[np.ndarray], float], rows: int, whole: float, drawn: int | None = None
) -> Ratio:
    chance = np.random.default_rng(0)
    size = rows if drawn is None else drawn
    samples = [statistic(chance.integers(rows, size=size)) for _ in range(2000)]
    low, high = np.quantile(samples, [0.025, 0.975])
    return Ratio(whole, float(low), float(high), size)


def _yardstick(device: torch.device) -> Callable[[], float]:
    """Return what does the fixed piece of work and tells how long it took; it leaves random states as they are."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model = build_model("mlp-3x128", 10, (64,)).to(device)
        x, y = torch.randn(_YARD_BATCH, 64).to(device), (torch.arange(_YARD_BATCH) % 10).to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def work() -> float:
        start = clock(device)
        for _ in range(_YARD_STEPS):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return clock(device) - start

    return work
