"""What kills units: learning rate, batch size, weight decay, gradient noise and optimizer, one at a time.

Two streams of about as many updates: one data set again and again, which is Demon pruning's setting, and one task after
another, which is that of continual learning. A dead unit is one that is exactly 0 on a fixed probe of training samples
at the end. Batch sizes are compared twice, over as many epochs and over as many updates, since a larger batch takes
fewer updates to an epoch. Optimizers are compared with each other at their own best learning rates of those tried.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.comparison.statistics import Interval
from benchmarks.studies.study import Asked, Finished, Report, Study, StudyRun, over_seeds, study_run
from benchmarks.studies.tables import Column, level, written


@dataclass(frozen=True)
class Stream:
    """Where networks are trained.

    Args:
        title: In the table.
        benchmark: Name of the benchmark.
        settings: Of its runs.
    """

    title: str
    benchmark: str
    settings: Mapping[str, Any]


STREAMS = (
    Stream("one data set", "split-digits", {"experiences": 1, "epochs": 40, "model": "mlp-3x128"}),
    Stream("new tasks", "permuted-digits", {"experiences": 10, "epochs": 4, "model": "mlp-3x128"}),
)
FULL_STREAMS = (
    Stream("one data set", "split-cifar10", {"experiences": 1, "epochs": 8, "model": "pairs-conv", "batch_size": 32}),
    Stream("new tasks", "permuted-mnist", {"experiences": 5, "epochs": 4, "model": "mlp-3x128", "batch_size": 32}),
)

Settings = dict[str, Any]
OPTIMIZERS: dict[str, Settings] = {
    "Adam": {"optimizer": "adam", "learning_rate": 3e-3},
    "AdamW": {"optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 0.01},
    "SGD": {"optimizer": "sgd", "learning_rate": 0.1},
    "SGD, momentum 0.9": {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9},
}
RATES = {
    "Adam": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "AdamW": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "SGD": (0.01, 0.03, 0.1, 0.3, 1.0),
    "SGD, momentum 0.9": (0.001, 0.003, 0.01, 0.03, 0.1),
}
DECAYS = {
    "Adam": (0.0, 1e-4, 1e-3, 1e-2),
    "AdamW": (0.0, 0.01, 0.1, 1.0),
    "SGD, momentum 0.9": (0.0, 1e-4, 1e-3, 1e-2),
}
BATCHES = (8, 32, 128)
MIDDLE_BATCH = 32
NOISES = (0.0, 1e-3, 1e-2, 1e-1)
SWEPT = ("Adam", "SGD, momentum 0.9")  # over batch sizes and noise
FACTORS = (
    "learning rate",
    "batch size, equal epochs",
    "batch size, equal updates",
    "weight decay",
    "noise on all weights",
    "noise on live weights",
)


@dataclass(frozen=True)
class Point:
    """One setting of one factor, all else being as usual.

    Args:
        stream: Title of the stream.
        optimizer: A name in `OPTIMIZERS`.
        factor: One of `FACTORS`.
        level: The setting.
        runs: One a seed.
    """

    stream: str
    optimizer: str
    factor: str
    level: float
    runs: tuple[StudyRun, ...]


def points(asked: Asked) -> list[Point]:
    """Return all settings; some runs belong to several."""
    return [
        Point(stream.title, optimizer, factor, level, tuple(_runs(asked, stream, optimizer, factor, level)))
        for stream in (FULL_STREAMS if asked.full else STREAMS)
        for optimizer in OPTIMIZERS
        for factor in FACTORS
        for level in _levels(optimizer, factor)
    ]


def _levels(optimizer: str, factor: str) -> tuple[float, ...]:
    if factor == "learning rate":
        return RATES[optimizer]
    if factor == "weight decay":
        return DECAYS.get(optimizer, ())
    if optimizer not in SWEPT:
        return ()
    return BATCHES if factor.startswith("batch size") else NOISES


def _runs(asked: Asked, stream: Stream, optimizer: str, factor: str, level: float) -> Iterator[StudyRun]:
    settings = {"batch_size": MIDDLE_BATCH, **OPTIMIZERS[optimizer], **stream.settings}
    strategy = "naive"
    if factor == "learning rate":
        settings["learning_rate"] = level
    elif factor == "weight decay":
        settings["weight_decay"] = level
    elif factor.startswith("batch size"):
        settings["batch_size"] = int(level)
        if factor.endswith("updates"):
            settings["epochs"] = settings["epochs"] * int(level) // MIDDLE_BATCH
    elif level > 0:
        strategy = f"gradient-noise:std={level:g}" + (":live_only=true" if factor.endswith("live weights") else "")
    parts = {"lr": "learning_rate", "momentum": "momentum", "decay": "weight_decay", "batch": "batch_size"}
    named = [f"{short}-{settings[name]:g}" for short, name in parts.items() if settings.get(name)]
    variant = "_".join([str(settings["optimizer"]), *named, f"epochs-{settings['epochs']}"])
    for seed in range(asked.seeds):
        yield study_run(asked, variant, stream.benchmark, strategy, seed, **settings)


def runs(asked: Asked) -> list[StudyRun]:
    """Declare the runs."""
    return [run for point in points(asked) for run in point.runs]


# --- what came out ---------------------------------------------------------------------------------------------

LEARNS = 0.9
"""A network still learns where its accuracy is at least this share of the best of its series."""


@dataclass(frozen=True)
class Series:
    """A factor, all else being as usual, over those settings at which networks still learn.

    Args:
        points: Its settings, rising.
        learning: Those at which networks still learn.
        change: Share of dead units at the highest of these minus that at the lowest, with its interval over seeds.
        most: The setting of these with most dead units on average.
    """

    points: list[Point]
    learning: list[Point]
    change: Interval
    most: float


def series(found: list[Point], finished: Finished) -> Series:
    """Compare the settings of one factor.

    Args:
        found: Its points, on the same seeds.
        finished: The runs.
    """
    dead = [finished.measures(point.runs, "dead_fraction") for point in found]
    accuracy = [float(finished.measures(point.runs, "late_learning_accuracy").mean()) for point in found]
    kept = [index for index, value in enumerate(accuracy) if value >= LEARNS * max(accuracy)]
    change = over_seeds(dead[kept[-1]] - dead[kept[0]]) if len(kept) > 1 else over_seeds([])
    most = max(kept, key=lambda index: float(dead[index].mean()))
    return Series(found, [found[index] for index in kept], change, found[most].level)


def best_rates(found: list[Point], finished: Finished) -> list[Point]:
    """Return for each optimizer of each stream its setting of the learning rate with the best accuracy."""
    best = []
    for stream in dict.fromkeys(point.stream for point in found):
        for optimizer in OPTIMIZERS:
            tried = [p for p in found if (p.stream, p.optimizer, p.factor) == (stream, optimizer, "learning rate")]
            best.append(max(tried, key=lambda p: float(finished.measures(p.runs, "late_learning_accuracy").mean())))
    return best


def report(asked: Asked, finished: Finished) -> Report:
    """Turn finished runs into one row a setting, a shorter table of one row a factor, and a finding."""
    found = points(asked)
    rows = [_row(point, point.factor, finished) for point in found]
    best = best_rates(found, finished)
    rows += [_row(point, "optimizer, at its best learning rate", finished) for point in best]
    grouped: dict[tuple[str, str, str], list[Point]] = {}
    for point in found:
        grouped.setdefault((point.stream, point.optimizer, point.factor), []).append(point)
    compared = [series(some, finished) for some in grouped.values()]
    return Report(rows, _finding(compared, best, finished), [_summary(each, finished) for each in compared])


def _row(point: Point, factor: str, finished: Finished) -> dict[str, Any]:
    return {
        "stream": point.stream,
        "optimizer": point.optimizer,
        "factor": factor,
        "level": point.level,
        "dead": over_seeds(finished.measures(point.runs, "dead_fraction")),
        "accuracy": over_seeds(finished.measures(point.runs, "late_learning_accuracy")),
        "rank": over_seeds(finished.measures(point.runs, "effective_rank")),
        **finished.diverged(point.runs),
    }


def _summary(each: Series, finished: Finished) -> dict[str, Any]:
    first, last = each.learning[0], each.learning[-1]
    return {
        "factor": first.factor,
        "stream": first.stream,
        "optimizer": first.optimizer,
        "range": f"{level(first.level)} to {level(last.level)}",
        "dead_first": over_seeds(finished.measures(first.runs, "dead_fraction")),
        "dead_last": over_seeds(finished.measures(last.runs, "dead_fraction")),
        "change": each.change,
        "most": each.most,
        **finished.diverged(run for point in each.points for run in point.runs),
    }


def _finding(compared: list[Series], best: list[Point], finished: Finished) -> str:
    words = {
        "learning rate": "A higher learning rate",
        "batch size, equal epochs": "A larger batch, over as many epochs,",
        "batch size, equal updates": "A larger batch, over as many updates,",
        "weight decay": "More weight decay",
        "noise on all weights": "Gradient noise on all weights",
        "noise on live weights": "Gradient noise on live weights alone",
    }
    sentences = []
    for factor in FACTORS:
        some = [each for each in compared if each.points[0].factor == factor and each.change["mean"] is not None]
        sentences.append(f"{words[factor]} {_direction(some)}.")
    sentences.append(
        "Demon pruning’s authors report more deaths with higher learning rates, smaller batches and more "
        "regularisation; figures of DNR-Pruning show slightly fewer with higher rates."
    )
    for stream in dict.fromkeys(point.stream for point in best):
        shares = [
            f"{point.optimizer} {written(over_seeds(finished.measures(point.runs, 'dead_fraction')), 2)}"
            for point in best
            if point.stream == stream
        ]
        sentences.append(f"At its own best learning rate, dead units with {stream}: {', '.join(shares)}.")
    sentences.append(f"All this where networks still learn: accuracy at least {LEARNS:.0%} of the best of the series.")
    return " ".join(sentences)


def _direction(some: list[Series]) -> str:
    """Say in how many series units die with a higher setting, and in how many they live."""
    if not some:
        return "leaves nothing to compare: networks learn at one setting only"
    more = [each for each in some if (each.change["low"] or 0) > 0]
    fewer = [each for each in some if (each.change["high"] or 0) < 0]
    rest = len(some) - len(more) - len(fewer)
    largest = max(some, key=lambda each: abs(each.change["mean"] or 0))
    where = f"{largest.points[0].optimizer}, {largest.points[0].stream}"
    ends = f"{level(largest.learning[0].level)} to {level(largest.learning[-1].level)}"
    counts = f"kills more units in {len(more)} of {len(some)} series, fewer in {len(fewer)}"
    unclear = f", and in {rest} the interval contains 0" if rest else ""
    return f"{counts}{unclear} (largest change: {written(largest.change, 2, sign=True)}, {where}, {ends})"


STUDY = Study(
    name="dying-units",
    question="What kills units: learning rate, batch size, weight decay, gradient noise or the optimizer?",
    source="the question of Dufort-Labbé et al. 2024 (Demon pruning), arXiv 2403.07688; settings chosen here",
    columns=(
        Column("stream", "stream"),
        Column("optimizer", "optimizer"),
        Column("factor", "factor"),
        Column("level", "setting"),
        Column("dead", "dead\nunits", "share of hidden units that are 0 on all of a fixed probe, at the end"),
        Column("accuracy", "late learning\naccuracy"),
        Column("rank", "effective\nrank", digits=1),
    ),
    summary_columns=(
        Column("factor", "factor"),
        Column("stream", "stream"),
        Column("optimizer", "optimizer"),
        Column("range", "settings", f"those at which accuracy is at least {LEARNS:.0%} of the best of the series"),
        Column("dead_first", "dead units\nat the first", "share of hidden units that are 0 on all of a fixed probe", 2),
        Column("dead_last", "dead units\nat the last", digits=2),
        Column("change", "change", "the last minus the first, on the same seeds", 2),
        Column("most", "most\nat"),
    ),
    seeds=5,
    full_seeds=3,
    runs=runs,
    report=report,
    modules=("benchmarks.studies.gradient_noise",),
)
