"""One run: train a strategy on a stream, and measure it after every experience."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.models.utils import is_multi_task_module
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn

from benchmarks import asked_measures
from benchmarks.comparison.measures import result_measures
from benchmarks.evaluating import ExperienceTensors, StreamTensors, evaluate, experience_tensors
from benchmarks.models import build_model
from benchmarks.observing import OnlineAccuracyPlugin, PastSamples, Stopwatch, watch_damage
from benchmarks.settings import FORMAT, RunSettings
from benchmarks.streams import get_benchmark, mini_experiences, stream_shape
from plasticity import find_units, measures
from plasticity.errors import UserError
from plasticity.loading import TensorLoaderPlugin
from plasticity.metrics import JSONLinesLogger
from plasticity.plugins.base import TreatmentPlugin
from plasticity.probe import Probe, balanced
from strategies import Context, build_plugins, change_network, choose_optimizer, parse
from strategies.fresh import FreshNetworkPlugin

PROBE_SAMPLES = 2048
Report = Callable[[int], None]
Log = Callable[[str, float | None], None]
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
    example = _inputs(experience_tensors(stream.train_stream[0]), slice(0, 4), shape.task_labels)
    for settings in {run.strategy: run for run in runs}.values():
        _make(settings, partial(build_model, settings.model, *shape), example)


def _make(
    settings: RunSettings, build: Callable[[], nn.Module], example: tuple[Tensor, ...]
) -> tuple[nn.Module, torch.optim.Optimizer, list[Any]]:
    """Make a run's network, optimizer and plugins."""

    def network() -> nn.Module:
        return change_network(settings.strategy, build(), example).to(settings.device)

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


def train(settings: RunSettings, metrics: Path, progress: Report = lambda experience: None) -> dict[str, Any]:
    """Train and measure one run.

    Args:
        settings: What to run.
        metrics: File for every metric value, one JSON object a line.
        progress: Told the number of finished experiences.

    Returns:
        The content of result.json.

    Raises:
        UserError: If the settings are impossible or data are missing.
    """
    torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    benchmark = get_benchmark(settings.benchmark)
    stream = benchmark.build(settings.stream)
    shape = stream_shape(stream, settings.stream)
    _seed(settings.seed)

    example = _inputs(experience_tensors(stream.train_stream[0]), slice(0, 4), shape.task_labels)

    model, optimizer, plugins = _make(settings, partial(build_model, settings.model, *shape), example)
    online, stopwatch = OnlineAccuracyPlugin(), Stopwatch(device)
    asked = asked_measures.AskedMeasures(settings.measure, stopwatch)
    with JSONLinesLogger(metrics) as logger:
        strategy = Naive(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=settings.batch_size,
            train_epochs=settings.epochs,
            device=device,
            plugins=[*asked.plugins, *plugins, online, TensorLoaderPlugin()],
            evaluator=EvaluationPlugin(loggers=[logger], collect_all=False),
        )

        def log(name: str, value: float | None) -> None:
            if value is not None:
                logger.log_single_metric(name, value, strategy.clock.train_iterations)

        return _run(settings, strategy, stream, plugins, online, asked, stopwatch, log, progress)


def _run(
    settings: RunSettings,
    strategy: Any,
    stream: Any,
    plugins: list[Any],
    online: OnlineAccuracyPlugin,
    asked: asked_measures.AskedMeasures,
    stopwatch: Stopwatch,
    log: Log,
    progress: Report,
) -> dict[str, Any]:
    fresh = "fresh" in settings.strategy.split("+")
    tests = StreamTensors(stream.test_stream, strategy.device)
    size = len(tests)
    benchmark = get_benchmark(settings.benchmark)
    scored = list(range(0, size, benchmark.scored_every))
    matrix: list[list[float | None]] = []
    units: list[dict[str, Any]] = []
    online_accuracy: list[float | None] = []
    watch_damage(plugins, PastSamples(tests), stopwatch)
    transferable = [False] * size if fresh else _transferable(stream, is_multi_task_module(strategy.model))
    untrained = [
        evaluate(strategy.model, test) if known else None for test, known in zip(tests, transferable, strict=True)
    ]
    before_learning: list[float | None] = []
    for index, experience in enumerate(stream.train_stream):
        before_learning.append(evaluate(strategy.model, tests[index]) if transferable[index] else None)
        shown = mini_experiences(experience, benchmark.online, settings.seed) if benchmark.online else [experience]
        with stopwatch.running():
            strategy.train(shown, eval_streams=[])
        online_accuracy.append(online.take())
        log(f"Top1_Acc_Online_Exp/train_phase/train_stream/Exp{index:03d}", online_accuracy[-1])
        # A network that is replaced before the next experience forgets nothing: only its last one is asked about all.
        tested = [index] if fresh and index < scored[-1] else range(index + 1)
        row: list[float | None] = [None] * size
        for other in tested:
            row[other] = evaluate(strategy.model, tests[other])
            log(f"Top1_Acc_Exp/eval_phase/test_stream/Exp{other:03d}", row[other])
        matrix.append(row)
        learned = experience_tensors(experience, strategy.device)
        units.append({"experience": index, **_units(strategy.model, learned)})
        units[-1].update(asked.after_experience(strategy.model, partial(_samples, strategy.model, learned)))
        for name, title in _TITLES.items():
            log(f"{title}_Exp/eval_phase/train_stream/Exp{index:03d}", units[-1][name])
        progress(index + 1)
    result = {
        "format": FORMAT,
        "benchmark": settings.benchmark,
        "strategy": settings.strategy,
        "seed": settings.seed,
        "experiences": size,
        "scored": scored,
        "accuracy_matrix": matrix,
        "learning_accuracy": [row[index] for index, row in enumerate(matrix)],
        "online_accuracy": online_accuracy,
        "untrained_accuracy": untrained,
        "accuracy_before_learning": before_learning,
        "units": units,
        "treatments": _treatments(plugins),
        "parameters": sum(parameter.numel() for parameter in strategy.model.parameters()),
        "counts_treated_units": _counted(settings.strategy, plugins),
        "seconds": stopwatch.seconds,
        "process_seconds": stopwatch.process_seconds,
    }
    return {**result, "measures": result_measures(result, fresh)}


_TITLES = {
    "dead_fraction": "DeadUnits",
    "dormant_fraction": "DormantUnits",
    "over_active_fraction": "OverActiveUnits",
    "effective_rank": "EffectiveRank",
}


def _units(model: nn.Module, data: ExperienceTensors) -> dict[str, Any]:
    """Judge the units of a network on a fixed probe of an experience's training samples."""
    probe, _ = _samples(model, data, PROBE_SAMPLES)
    groups = find_units(model, probe.example())
    if len(groups) == 0:
        raise UserError(f"the model ({type(model).__name__}) has no hidden units to watch")
    activity, _ = probe.watch(model, groups, features=PROBE_SAMPLES)
    stats = {name: stat for name, stat in activity.statistics().items() if stat.count}
    features = activity.features()
    shares = {
        "dead": measures.dead_fraction,
        "dormant": measures.dormant_fraction,
        "over_active": measures.over_active_fraction,
    }
    return {
        "samples": probe.samples,
        "layers": {
            name: {"size": len(stat.fired), **{key: float(share(stat)) for key, share in shares.items()}}
            for name, stat in stats.items()
        },
        **{f"{key}_fraction": float(share(stats)) for key, share in shares.items()},
        "effective_rank": None if features is None else _finite(float(measures.effective_rank(features))),
    }


def _samples(model: nn.Module, data: ExperienceTensors, count: int) -> tuple[Probe, Tensor]:
    """Choose samples, as far as possible equally many of each class, and always the same ones; and their classes."""
    order = torch.randperm(len(data.targets), generator=torch.Generator().manual_seed(0))
    chosen = balanced(Probe([(order,)]), data.targets.cpu()[order], count)
    rows = [rows.to(data.targets.device) for (rows,) in chosen.batches]
    heads = is_multi_task_module(model)
    return Probe([_inputs(data, each, heads) for each in rows]), data.targets[torch.cat(rows)]


def _inputs(data: ExperienceTensors, rows: Tensor | slice, task_labels: bool) -> tuple[Tensor, ...]:
    """Return the positional inputs of a network for some samples."""
    if task_labels and data.tasks is not None:
        return data.inputs[rows], data.tasks[rows]
    return (data.inputs[rows],)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


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


def _treatments(plugins: list[Any]) -> list[dict[str, Any]]:
    """Collect what the plugins report of their interventions, with numbers of units in place of their names."""
    found = []
    for plugin in plugins:
        for entry in getattr(plugin, "history", ()):
            chosen = {name: len(numbers) for name, numbers in entry.get("units", {}).items()}
            numbers = {name: _finite(value) for name, value in entry.items() if isinstance(value, float)}
            found.append({**entry, **numbers, "units": chosen})
    return found


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
