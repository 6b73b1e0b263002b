"""One run: train a strategy on a stream, and measure it after every experience."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.models.utils import is_multi_task_module
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn

from benchmarks import asked_measures
from benchmarks.comparison.measures import result_measures
from benchmarks.evaluating import StreamTensors, evaluate, experience_samples, room, to_test
from benchmarks.gradient_norms import GradientNormPlugin
from benchmarks.judging import TITLES, diverged, finite, first_diverged, inputs, judge_units, samples
from benchmarks.models import build_model
from benchmarks.observing import OnlineAccuracyPlugin, PastSamples, Stopwatch, watch_damage
from benchmarks.record import NAME, Record
from benchmarks.resuming.keeping import CannotResumeError, Keeping, Parts
from benchmarks.resuming.loop import KeptNaive
from benchmarks.settings import FORMAT, RunSettings
from benchmarks.streams import get_benchmark, mini_experiences, stream_shape
from plasticity.errors import UserError
from plasticity.loading import TensorLoaderPlugin
from plasticity.metrics import JSONLinesLogger
from plasticity.plugins.base import TreatmentPlugin
from plasticity.plugins.reporting import Reporting
from strategies import Context, build_plugins, change_network, choose_optimizer, parse
from strategies.fresh import FreshNetworkPlugin

Report = Callable[[int], None]
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def check(runs: Sequence[RunSettings]) -> None:
    """Make what runs on one benchmark need and throw it away, so that a mistake shows before hours of training.

    Raises:
        UserError: If the settings are impossible or data are missing.
    """
    settings = runs[0]
    asked_measures.check(settings.measure)
    stream = get_benchmark(settings.benchmark).build(settings.stream)
    shape = stream_shape(stream, settings.stream)
    example = inputs(experience_samples(stream.train_stream[0]), slice(0, 4), shape.task_labels)
    for settings in {run.strategy: run for run in runs}.values():
        _make(settings, partial(build_model, settings.model, *shape), example)


def _make(
    settings: RunSettings, build: Callable[[], nn.Module], example: tuple[Tensor, ...]
) -> tuple[nn.Module, torch.optim.Optimizer, list[Any]]:
    """Make a run's network, optimizer and plugins."""

    def network() -> nn.Module:
        return settings.computing.network(change_network(settings.strategy, build(), example).to(settings.device))

    model = network()
    optimizer = choose_optimizer(
        settings.strategy, list(model.parameters()), settings.optimizer, settings.learning_rate
    )
    if optimizer is None:
        optimizer = _benchmark_optimizer(settings, model)
    elif settings.momentum or settings.weight_decay:
        raise UserError(f"{settings.strategy} has an optimizer of its own, which takes no momentum and no weight decay")
    online = get_benchmark(settings.benchmark).online is not None
    context = Context(network, settings.seed, settings.epochs, settings.batch_size, settings.experiences, online)
    return model, optimizer, build_plugins(settings.strategy, context)


def _benchmark_optimizer(settings: RunSettings, model: nn.Module) -> torch.optim.Optimizer:
    options = {"momentum": settings.momentum} if settings.optimizer == "sgd" else {}
    return _OPTIMIZERS[settings.optimizer](
        model.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,  # one kernel for all parameters: small networks spend a third of a step in the optimizer otherwise
        **options,
    )


def train(
    settings: RunSettings, metrics: Path, progress: Report = lambda experience: None, keeping: Keeping | None = None
) -> dict[str, Any]:
    """Train and measure one run.

    Args:
        settings: What to run.
        metrics: File for every metric value, one JSON object a line.
        progress: Told the number of finished experiences.
        keeping: Saves checkpoints of the run, and has those that it goes on from; None: there are none.

    Returns:
        The content of result.json.

    Raises:
        UserError: If the settings are impossible or data are missing.
    """
    torch.set_num_threads(settings.threads)
    for found in () if keeping is None else keeping.found():
        assert keeping is not None
        with _Run(settings, metrics, append=True) as run:
            try:
                keeping.resume(run.parts, found)
                keeping.tell(f"goes on after {keeping.place[0]} of {settings.experiences} experiences")
                return run.complete(progress, keeping)
            except CannotResumeError as reason:
                keeping.tell(f"a checkpoint is not used: {reason}")
    with _Run(settings, metrics) as run:
        if keeping is not None:
            keeping.begin(run.parts)
        return run.complete(progress, keeping)


class _Run:
    """A strategy on a stream, and what is measured of it.

    Args:
        settings: What to run.
        metrics: File for every metric value.
        append: Leave what is in the file.
    """

    def __init__(self, settings: RunSettings, metrics: Path, append: bool = False):
        self.settings = settings
        self.benchmark = get_benchmark(settings.benchmark)
        self.stream = self.benchmark.build(settings.stream)
        shape = stream_shape(self.stream, settings.stream)
        _seed(settings.seed)
        example = inputs(experience_samples(self.stream.train_stream[0]), slice(0, 4), shape.task_labels)
        model, optimizer, self.plugins = _make(settings, partial(build_model, settings.model, *shape), example)
        self.online, self.stopwatch = OnlineAccuracyPlugin(), Stopwatch(torch.device(settings.device))
        self.gradients = GradientNormPlugin(self.stopwatch)
        self.asked = asked_measures.AskedMeasures(settings.measure, self.stopwatch)
        self.keeping_state = [
            *settings.computing.plugins(),
            *self.asked.plugins,
            *self.plugins,
            self.online,
            self.gradients,
        ]
        self.logger = JSONLinesLogger(metrics, append=append)
        self.strategy: Any = KeptNaive(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=settings.batch_size,
            train_epochs=settings.epochs,
            device=torch.device(settings.device),
            plugins=[*self.keeping_state, TensorLoaderPlugin()],
            evaluator=EvaluationPlugin(loggers=[self.logger], collect_all=False),
        )
        self.fresh = "fresh" in settings.strategy.split("+")
        self.tests = StreamTensors(
            self.stream.test_stream, self.strategy.device, room(0 if self.fresh else settings.evaluate)
        )
        self.record = Record(metrics.with_name(NAME), append)
        watch_damage(self.plugins, PastSamples(self.tests), self.stopwatch)

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.logger.close()

    @property
    def parts(self) -> Parts:
        """What is saved of the run."""
        experiences = self.stream.train_stream
        return Parts(self.strategy, self.keeping_state, experiences, self.record, self.stopwatch, self.logger.path)

    def complete(self, progress: Report, keeping: Keeping | None) -> dict[str, Any]:
        """Train on the experiences that are to come; returns the content of result.json."""
        record, strategy, tests = self.record, self.strategy, self.tests
        size = len(tests)
        transferable = [False] * size
        if not self.fresh:
            transferable = _transferable(self.stream, is_multi_task_module(strategy.model))
        if not record.untrained:
            record.untrained = [
                evaluate(strategy.model, test) if known else None
                for test, known in zip(tests, transferable, strict=True)
            ]
        told = False
        progress(record.experiences)
        for index in range(record.experiences, size):
            if not record.before_learning:
                record.before_learning = [evaluate(strategy.model, tests[index]) if transferable[index] else None]
            self._learn(self.stream.train_stream[index], keeping)
            reason = self._measure(index)
            if keeping is not None and reason is not None and not told:
                keeping.tell(f"has diverged in experience {index}: {reason}")
                told = True
            if keeping is not None:
                keeping.after_experience(index + 1)
            progress(index + 1)
        return self._result()

    def _learn(self, experience: Any, keeping: Keeping | None) -> None:
        online = self.benchmark.online
        shown = mini_experiences(experience, online, self.settings.seed) if online else [experience]
        if not len(experience.dataset):
            raise UserError(f"experience {int(experience.current_experience)} of the stream has no training samples")
        with self.stopwatch.running(), _answering():
            self.strategy.train(shown if keeping is None else keeping.parts_of(shown), eval_streams=[])

    def _measure(self, index: int) -> str | None:
        """Measure the network just after it learned an experience; returns why it has diverged, or None."""
        tests, model, online = self.tests, self.strategy.model, self.online.take()
        self._log(f"Top1_Acc_Online_Exp/train_phase/train_stream/Exp{index:03d}", online)
        # A network that is replaced before the next experience forgets nothing: only its last one is asked about all.
        earlier = 0 if self.fresh else self.settings.evaluate
        tested = {}
        for other in to_test(index, earlier, self.settings.seed, last=self.scored[-1]):
            tested[other] = evaluate(model, tests[other])
            self._log(f"Top1_Acc_Exp/eval_phase/test_stream/Exp{other:03d}", tested[other])
        learned = experience_samples(self.stream.train_stream[index], self.strategy.device)
        wrong = diverged(self.online.wrong_loss())
        units = {"experience": index, **wrong, **judge_units(model, learned), "gradient_norm": self.gradients.take()}
        units.update(self.asked.after_experience(model, partial(samples, model, learned)))
        for name, title in TITLES.items():
            self._log(f"{title}_Exp/eval_phase/train_stream/Exp{index:03d}", units[name])
        self.record.add(online, tested, units, _taken_treatments(self.plugins))
        self.strategy.evaluator.reset_last_metrics()  # which have the experience in their names, and so pile up
        return units.get("diverged")

    def _log(self, name: str, value: float | None) -> None:
        if value is not None:
            self.logger.log_single_metric(name, value, self.strategy.clock.train_iterations)

    @property
    def scored(self) -> list[int]:
        """Which experiences count in measures over the stream."""
        return list(range(0, len(self.tests), self.benchmark.scored_every))

    def _result(self) -> dict[str, Any]:
        settings, record = self.settings, self.record.result(_kept_treatments(self.plugins))
        result = {
            "format": FORMAT,
            "benchmark": settings.benchmark,
            "strategy": settings.strategy,
            "seed": settings.seed,
            "experiences": len(self.tests),
            "scored": self.scored,
            **({} if settings.evaluate is None else {"evaluate": settings.evaluate}),
            **first_diverged(record["units"]),
            **record,
            "parameters": sum(parameter.numel() for parameter in self.strategy.model.parameters()),
            "counts_treated_units": _counted(settings.strategy, self.plugins),
            "seconds": self.stopwatch.seconds,
            "processor": {"seconds": self.stopwatch.process_seconds},
        }
        return {**result, "measures": result_measures(result, self.fresh)}


@contextmanager
def _answering() -> Iterator[None]:
    """Answer in words what PyTorch says of a mini-batch of one sample before a batch normaliser."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "a mini-batch has one sample, for which the model's batch normalisation has no statistics; "
            "choose a --batch-size that leaves no rest of 1"
        ) from error


def _transferable(stream: Any, heads: bool) -> list[bool]:
    """Say of each experience whether a network can know anything of it before: not of new classes or a new head."""

    def classes(experience: Any) -> set[tuple[int, int]]:
        tasks = experience.task_labels if heads else [0]
        return {(int(task), int(label)) for task in tasks for label in experience.dataset.targets.uniques}

    found: list[bool] = []
    known: set[tuple[int, int]] = set()
    for experience, test in zip(stream.train_stream, stream.test_stream, strict=True):
        found.append(classes(test) <= known)
        known |= classes(experience)
    return found


def _taken_treatments(plugins: list[Any]) -> list[tuple[int, dict[str, Any]]]:
    """Take from our plugins what they report of their interventions, each with the number of the plugin."""
    return [
        (number, _counts(entry))
        for number, plugin in enumerate(plugins)
        if isinstance(plugin, Reporting)
        for entry in plugin.take_history()
    ]


def _kept_treatments(plugins: list[Any]) -> list[tuple[int, dict[str, Any]]]:
    """Collect likewise what the plugins of others report, which may need their histories until the end."""
    return [
        (number, _counts(entry))
        for number, plugin in enumerate(plugins)
        if not isinstance(plugin, Reporting)
        for entry in getattr(plugin, "history", ())
    ]


def _counts(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a report with numbers of units in place of their names."""
    chosen = {name: len(numbers) for name, numbers in entry.get("units", {}).items()}
    numbers = {name: finite(value) for name, value in entry.items() if isinstance(value, float)}
    return {**entry, **numbers, "units": chosen}


def _counted(name: str, plugins: list[Any]) -> bool:
    """Say whether a strategy changes units at single times, which can be counted, or not at all."""
    if any(strategy.optimizer is not None for strategy in parse(name)):
        return False
    if any(isinstance(plugin, (TreatmentPlugin, FreshNetworkPlugin)) for plugin in plugins):
        return True
    return not plugins and all(strategy.network is None for strategy in parse(name))


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
