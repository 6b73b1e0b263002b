"""What an epoch takes: class-incremental CIFAR-100 with ResNet-18, beside a bare loop and what arithmetic alone takes.

The arithmetic floor is the number of floating-point operations of an epoch's forward and backward passes over the
number of them that this device does in a second, at this precision, in the better one of a large matrix product and
a large convolution. All are measured in the same rounds. Data are random, as everywhere here.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.computing import Computing
from benchmarks.cost.bare import BareSteps
from benchmarks.cost.cases import Case, StepTimer, Trainer
from benchmarks.cost.table import Line
from benchmarks.cost.timing import Block, clock, interleave_builds, ratio, summary
from benchmarks.models import build_model
from benchmarks.streams import get_benchmark
from plasticity.metrics import plasticity_metrics

BENCHMARK = "split-cifar100"
IMAGES, SHAPE, CLASSES = 50_000, (3, 32, 32), 100
FEW = 8
"""Mini-batches of a block on a CPU, where an epoch takes minutes."""
NAIVE, WATCHED = "naive", "plasticity_metrics(epoch=True)"
BARE, MATMUL, CONVOLUTION, FLOOR = "bare loop over tensors", "matrix product", "convolution", "arithmetic floor"
PEAKS = {"cpu": (1024, (16, 128, 16), 3), "cuda": (8192, (256, 256, 32), 20)}
"""Side of the matrices; mini-batch, channels and side of the convolution; how often each is done in a block."""


def measure(device: torch.device, rounds: int, *, computing: Computing | None = None) -> Iterator[Line]:
    """Measure an epoch of the first experience: of naive training, with every unit watched, and of a bare loop.

    Args:
        device: Where; on a CPU the time of an epoch is worked out from a few of its mini-batches.
        rounds: Interleaved rounds.
        computing: How the network computes; None: as by default.
    """
    computing = computing or Computing()
    benchmark = get_benchmark(BENCHMARK)
    batch = benchmark.batch_size
    batches = -(-IMAGES // benchmark.experiences // batch)
    steps = min(FEW, batches) if device.type == "cpu" else batches - StepTimer.SKIPPED
    optimizer = partial(torch.optim.SGD, lr=benchmark.learning_rate, fused=True)
    case = Case(benchmark.name, benchmark.model, SHAPE, batch, optimizer, steps, CLASSES, computing)
    peaks = {MATMUL: partial(matmul, device, computing), CONVOLUTION: partial(convolution, device, computing)}

    def blocks() -> dict[str, Block]:
        return {
            NAIVE: Trainer(case, device),
            WATCHED: Trainer(case, device, metrics=[plasticity_metrics(epoch=True)]),
            BARE: Bare(case, device),
            **peaks,
        }

    times = interleave_builds(blocks, rounds)
    for name in (NAIVE, WATCHED, BARE):
        times[name] = [seconds * batches for seconds in times[name]]
    operations = Bare(case, device).operations() * batches
    times[FLOOR] = [operations * min(pair) for pair in zip(times[MATMUL], times[CONVOLUTION], strict=True)]
    looked_at = "" if device.type != "cpu" else f", from {steps} of its {batches} mini-batches"
    where = f"{benchmark.name}, {benchmark.model}, batch {batch}"
    for name in (NAIVE, WATCHED, BARE, FLOOR):
        unit = f"seconds an epoch of {IMAGES // benchmark.experiences} images{'' if name == FLOOR else looked_at}"
        yield Line("epoch", where, name, unit, summary(times[name]))
    for base in (FLOOR, BARE):
        for name in (NAIVE, WATCHED, BARE):
            if name != base:
                yield Line("epoch", where, name, f"time / {base}", ratio(times, name, base))
    for name in peaks:
        speeds = [1e-12 / seconds for seconds in times[name]]
        yield Line("epoch", where, name, "10^12 operations a second", summary(speeds))


class Bare:
    """Training steps without Avalanche on the same random mini-batches; called, it takes some and tells the time.

    Args:
        case: What to train.
        device: Where.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        self._model = case.computing.network(build_model(case.model, case.classes, case.shape).to(device))
        self._steps = BareSteps(self._model, case.optimizer(self._model.parameters()), case.computing, device)
        count = case.batch_size * case.steps
        self._data = torch.randn(count, *case.shape, device=device), torch.randint(case.classes, (count,)).to(device)

    def __call__(self) -> float:
        """Return seconds a step."""
        start = clock(self.device)
        for inputs, labels in zip(*(part.split(self.case.batch_size) for part in self._data), strict=True):
            self._steps.step(inputs, labels)
        return (clock(self.device) - start) / self.case.steps

    def operations(self) -> int:
        """Count the floating-point operations of the forward and backward pass of a mini-batch."""
        plain = Bare(replace(self.case, steps=1, computing=Computing()), self.device)
        with FlopCounterMode(display=False) as counted:
            plain._steps.loss(*plain._data).backward()
        return int(counted.get_total_flops())


def matmul(device: torch.device, computing: Computing) -> float:
    """Return the seconds of one floating-point operation in products of large square matrices."""
    side, _, times = PEAKS["cpu" if device.type == "cpu" else "cuda"]
    left, right = (torch.randn(side, side, device=device, dtype=_dtype(computing)) for _ in range(2))
    return _seconds(lambda: left @ right, times, device) / (2 * side**3)


def convolution(device: torch.device, computing: Computing) -> float:
    """Return the seconds of one floating-point operation in a convolution of many channels, 3x3."""
    _, (batch, channels, side), times = PEAKS["cpu" if device.type == "cpu" else "cuda"]
    layout = torch.channels_last if computing.channels_last else torch.contiguous_format
    inputs = torch.randn(batch, channels, side, side, device=device, dtype=_dtype(computing)).to(memory_format=layout)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=_dtype(computing)).to(memory_format=layout)
    operations = 2 * batch * channels**2 * 9 * side**2
    return _seconds(lambda: F.conv2d(inputs, weight, padding=1), times, device) / operations


def _dtype(computing: Computing) -> torch.dtype:
    found: torch.dtype = getattr(torch, computing.precision)
    return found


@torch.no_grad()
def _seconds(compute: Callable[[], object], times: int, device: torch.device) -> float:
    compute()
    start = clock(device)
    for _ in range(times):
        compute()
    return (clock(device) - start) / times
