"""What one run is: benchmark, strategy, seed, and everything that is set for it."""

import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.computing import Computing
from benchmarks.streams import StreamSettings, get_benchmark
from plasticity.errors import UserError
from plasticity.values import check_count, check_seed, in_range

FORMAT = 1
OPTIMIZERS = ("adam", "adamw", "sgd")
MOST_THREADS = 4096


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run, without None but for `data`.

    Args:
        benchmark: Name of the benchmark.
        strategy: Name of the strategy, or several combined with `+`.
        seed: Seed of the stream, the network and everything random.
        experiences: Length of the stream.
        scenario: Which labels and heads, see `benchmarks.streams.SCENARIOS`.
        model: Name of the network.
        optimizer: One of `OPTIMIZERS`.
        learning_rate: Step size.
        batch_size: Samples of new data in a mini-batch.
        epochs: Passes over each experience.
        device: Where the network and the data are.
        threads: Threads of one run on a CPU. Sums come out different in the last digits with another number.
        momentum: Of "sgd".
        weight_decay: Of any optimizer, at every step: "adamw" shrinks weights by it, the others add it to the gradient.
        measure: What is measured only if asked for, see `benchmarks.asked_measures`.
        evaluate: On how many earlier experiences a network is tested after each, see `benchmarks.evaluating.to_test`;
            None: on all.
        computing: Precision, memory format and compilation.
        data: Folder of the data; not part of what a run is.
    """

    benchmark: str
    strategy: str
    seed: int
    experiences: int
    scenario: str
    model: str
    optimizer: str
    learning_rate: float
    batch_size: int
    epochs: int
    device: str = "cpu"
    threads: int = 1
    momentum: float = 0.0
    weight_decay: float = 0.0
    measure: tuple[str, ...] = ()
    evaluate: int | None = None
    computing: Computing = Computing()
    data: Path | None = None

    @property
    def stream(self) -> StreamSettings:
        """What the stream needs to know."""
        return StreamSettings(self.seed, self.experiences, self.scenario, self.data)

    @property
    def folder(self) -> Path:
        """Where the run belongs below the folder of all results."""
        return Path(self.benchmark) / self.strategy / f"seed-{self.seed}"

    def config(self) -> dict[str, Any]:
        """Return the content of config.json: what the run is, and on what it ran."""
        shared = "experiences scenario model optimizer learning_rate batch_size epochs device threads".split()
        # Left out where they are 0, as in runs of before there were such settings.
        shared += [name for name in ("momentum", "weight_decay") if getattr(self, name)]
        return {
            "format": FORMAT,
            "benchmark": self.benchmark,
            "strategy": self.strategy,
            "seed": self.seed,
            "settings": {
                **{name: getattr(self, name) for name in shared},
                **({"measure": list(self.measure)} if self.measure else {}),
                **({} if self.evaluate is None else {"evaluate": self.evaluate}),
                **self.computing.asked(),
            },
            "environment": environment(self.device),
        }


def resolve(
    benchmark: str,
    strategy: str,
    seed: int,
    *,
    experiences: int | None = None,
    scenario: str | None = None,
    model: str | None = None,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    device: str = "cpu",
    threads: int = 1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    measure: Sequence[str] = (),
    evaluate: int | None = None,
    computing: Computing | None = None,
    data: Path | None = None,
) -> RunSettings:
    """Fill in a benchmark's defaults; arguments as in `RunSettings`.

    Raises:
        UserError: If a name is unknown or a value has no meaning.
    """
    found = get_benchmark(benchmark)
    check_seed(seed)
    counts = (("experiences", experiences), ("epochs", epochs), ("batch size", batch_size), ("threads", threads))
    for name, value, least in (*((*each, 1) for each in counts), ("evaluate", evaluate, 0)):
        if value is not None:
            check_count(name, value, least)
    for name, number in (("learning rate", learning_rate), ("momentum", momentum), ("weight decay", weight_decay)):
        if number is not None:
            in_range(name, number)
    stream = found.resolve(StreamSettings(seed, experiences, scenario, data))
    assert stream.experiences is not None and stream.scenario is not None
    if threads > MOST_THREADS:
        raise UserError(f"threads must be at most {MOST_THREADS}, not {threads}")
    if learning_rate == 0:
        raise UserError("learning rate must be above 0, not 0")
    optimizer = found.optimizer if optimizer is None else optimizer
    if optimizer not in OPTIMIZERS:
        raise UserError(f"unknown optimizer {optimizer!r}: there are {', '.join(OPTIMIZERS)}")
    if not 0 <= momentum < 1 or (momentum and optimizer != "sgd"):
        raise UserError(f"momentum must lie in [0, 1), and above 0 for sgd alone, not {momentum} for {optimizer}")
    computing = computing or Computing()
    computing.check(device)
    return RunSettings(
        benchmark=benchmark,
        strategy=strategy,
        seed=seed,
        experiences=stream.experiences,
        scenario=stream.scenario,
        model=found.model if model is None else model,
        optimizer=optimizer,
        learning_rate=found.learning_rate if learning_rate is None else learning_rate,
        batch_size=batch_size or found.batch_size,
        epochs=epochs or found.epochs,
        device=device,
        threads=threads,
        momentum=float(momentum),
        weight_decay=float(weight_decay),
        measure=tuple(sorted(set(measure))),
        evaluate=evaluate,
        computing=computing,
        data=data,
    )


def environment(device: str) -> dict[str, str]:
    """Return the versions and the machine that a run's numbers came from."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    found = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy")},
        "avalanche": version("avalanche-lib"),
        "plasticity": version("avalanche-plasticity"),
        "platform": platform.platform(),
        "cpu": _processor(),
    }
    with suppress(PackageNotFoundError):  # watching goes on without it, in other digits
        found["numba"] = version("numba")
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
