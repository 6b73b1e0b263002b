"""What a benchmark is, and the register of them by name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from plasticity.errors import UserError, unknown

if TYPE_CHECKING:  # imports Avalanche, which takes seconds
    from avalanche.benchmarks import CLScenario

SCENARIOS = {
    "class": "classes keep their own labels: one head for all, no task labels",
    "task": "labels start at 0 in every experience: a head each, chosen by the task label",
    "domain": "labels start at 0 in every experience: one head, no task labels",
}


@dataclass(frozen=True)
class StreamSettings:
    """What a run asks of a stream; None: as the benchmark has it.

    Args:
        seed: Decides the order of classes or the permutations, and nothing else does.
        experiences: How many.
        scenario: One of `SCENARIOS`.
        data: Folder of the data, see `benchmarks.data`; None: its default.
    """

    seed: int = 0
    experiences: int | None = None
    scenario: str | None = None
    data: Path | None = None


@dataclass(frozen=True)
class Benchmark:
    """A stream, and the defaults of a run on it.

    Args:
        name: As on the command line.
        summary: One line for the list of benchmarks.
        stream: Gets the settings, without None but for `data`; returns an Avalanche benchmark with the streams
            `train` and `test`, test experience i belonging to training experience i.
        experiences: How many by default.
        model: A name in `benchmarks.models`.
        optimizer: "adam" or "sgd" (without momentum).
        learning_rate: Step size.
        batch_size: Samples of new data in a mini-batch.
        epochs: Passes over each experience.
        scenario: The default one of `scenarios`.
        scenarios: What `--scenario` may ask for.
        scored_every: Of how many experiences one is tested, beginning with the first; the others are only trained on.
        online: How many samples are shown at a time, `epochs` times before the next; None: whole experiences.
        source: Where the set-up comes from.
    """

    name: str
    summary: str
    stream: "Callable[[StreamSettings], CLScenario]"
    experiences: int
    model: str
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    batch_size: int = 32
    epochs: int = 5
    scenario: str = "class"
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    scored_every: int = 1
    online: int | None = None
    source: str = ""

    def resolve(self, settings: StreamSettings) -> StreamSettings:
        """Fill in this benchmark's defaults.

        Raises:
            UserError: If the scenario is not one of this benchmark's, or the number of experiences is below 1.
        """
        scenario = self.scenario if settings.scenario is None else settings.scenario
        if scenario not in self.scenarios:
            raise UserError(f"{self.name} has no scenario {scenario!r}: possible is {', '.join(self.scenarios)}")
        experiences = self.experiences if settings.experiences is None else settings.experiences
        if experiences < 1:
            raise UserError(f"{self.name} needs at least 1 experience, and {experiences} were asked for")
        return replace(settings, scenario=scenario, experiences=experiences)

    def build(self, settings: StreamSettings) -> "CLScenario":
        """Make the stream: `build(settings).train_stream` and `.test_stream`, the same for the same settings.

        Raises:
            UserError: If the settings are impossible, or data are missing or corrupt.
        """
        return self.stream(self.resolve(settings))


class StreamShape(NamedTuple):
    """What a network must fit: arguments of `benchmarks.models.build_model`."""

    num_classes: int  # width of a head
    input_shape: tuple[int, ...]  # of one sample
    task_labels: bool  # a head for each task label


def stream_shape(stream: "CLScenario", settings: StreamSettings) -> StreamShape:
    """Read off what a network for this stream must look like.

    Args:
        stream: As `Benchmark.build` returned it.
        settings: As `Benchmark.resolve` returned them.
    """
    experiences = list(stream.streams["train"])
    num_classes = 1 + max(max(experience.dataset.targets.uniques) for experience in experiences)
    return StreamShape(int(num_classes), tuple(experiences[0].dataset[0][0].shape), settings.scenario == "task")


BENCHMARKS: dict[str, Benchmark] = {}


def register_benchmark(benchmark: Benchmark) -> Benchmark:
    """Add a benchmark under its name.

    Raises:
        UserError: If the name is taken.
    """
    if benchmark.name in BENCHMARKS:
        raise UserError(f"a benchmark named {benchmark.name!r} is registered already")
    BENCHMARKS[benchmark.name] = benchmark
    return benchmark


def get_benchmark(name: str) -> Benchmark:
    """Look a benchmark up.

    Raises:
        UserError: If there is none of that name; lists those there are.
    """
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]
