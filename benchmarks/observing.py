"""What a run notes while it trains: how well it does on samples before it learns them, and what interventions cost."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from benchmarks.comparison.page.activity import BINS
from benchmarks.evaluating import ExperienceTensors, evaluate
from plasticity.plugins.base import TreatmentPlugin

PAST_SAMPLES = 1024


class OnlineAccuracyPlugin(SupervisedPlugin[Any]):
    """Notes the accuracy of every training mini-batch before the update that it is used for.

    That of the strategy's own forward pass: dropout is on, and samples that replay adds to the mini-batch count. The
    device is asked once, by `take`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._right: list[Tensor] = []  # 0-dim counts, left on the device
        self._samples: list[int] = []
        self._loss: Tensor | None = None  # of the latest mini-batch of an experience

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the latest loss."""
        self._loss = strategy.loss.detach() if isinstance(strategy.loss, Tensor) else None

    def wrong_loss(self) -> str | None:
        """Say that the loss of the latest experience's last mini-batch is not finite; None: it is."""
        wrong = self._loss is not None and not bool(self._loss.isfinite().all())
        return "the loss of the last mini-batch is NaN or infinite" if wrong else None

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count what the present mini-batch has right."""
        self._right.append((strategy.mb_output.detach().argmax(1) == strategy.mb_y).sum())
        self._samples.append(len(strategy.mb_y))

    def take(self) -> float | None:
        """Return the mean over the mini-batches since the last call, of any epoch; None if there were none."""
        if not self._right:
            return None
        accuracies = torch.stack(self._right).cpu().double() / torch.tensor(self._samples, dtype=torch.float64)
        self._right, self._samples = [], []
        return float(accuracies.mean())

    def state_dict(self) -> dict[str, Any]:
        """Return the counts since the last `take`."""
        right = torch.stack(self._right) if self._right else torch.zeros(0, dtype=torch.int64)
        return {"right": right, "samples": list(self._samples), "loss": self._loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._right, self._samples = list(state["right"].unbind()), list(state["samples"])
        self._loss = state["loss"]


class Stopwatch:
    """Adds up time, of the clock and of the processor, and can stop in between.

    Args:
        device: Whose work has to be finished before a time is read.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._total = (0.0, 0.0)
        self._since: tuple[float, float] | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the clock."""
        return self._times()[0]

    @property
    def process_seconds(self) -> float:
        """Seconds of the processor, over all threads of this process."""
        return self._times()[1]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block."""
        self._since = self._now()
        try:
            yield
        finally:
            self._total, self._since = self._times(), None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, inside of `running`."""
        start = self._now()
        try:
            yield
        finally:
            end = self._now()
            self._total = self._total[0] - (end[0] - start[0]), self._total[1] - (end[1] - start[1])

    def state_dict(self) -> dict[str, float]:
        """Return the times so far."""
        seconds, process_seconds = self._times()
        return {"seconds": seconds, "process_seconds": process_seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from the times that `state_dict` returned."""
        self._total = float(state["seconds"]), float(state["process_seconds"])
        self._since = None if self._since is None else self._now()

    def _times(self) -> tuple[float, float]:
        if self._since is None:
            return self._total
        now = self._now()
        return self._total[0] + now[0] - self._since[0], self._total[1] + now[1] - self._since[1]

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()


class PastSamples:
    """Some test samples of the experiences so far, the same for all calls between two experiences.

    Args:
        tests: The test samples of every experience, on one device.
        limit: How many samples, at most: equally many of each experience, or one each of the latest.
    """

    def __init__(self, tests: Sequence[ExperienceTensors], limit: int = PAST_SAMPLES):
        self.tests = tests
        self.limit = limit
        self._experiences = 0
        self._found: ExperienceTensors | None = None
        # Of each row of it the experience, and its place among the samples of that, of which there are ever fewer.
        self._rows = torch.zeros(0, 2, dtype=torch.int64)

    def of(self, experiences: int) -> ExperienceTensors | None:
        """Return samples of the first experiences, never fewer of those than before; None if there are none."""
        if experiences < 1:
            return None
        if self._found is None or self._experiences != experiences:
            first, share = max(0, experiences - self.limit), max(1, self.limit // experiences)
            kept = ((self._rows[:, 0] >= first) & (self._rows[:, 1] < share)).nonzero().flatten()
            parts = [] if self._found is None else [_rows_of(self._found, kept)]
            rows = [self._rows[kept]]
            for index in range(max(first, self._experiences), experiences):
                parts.append(self._some(index, share))
                count = len(parts[-1].targets)
                rows.append(torch.stack([torch.full((count,), index), torch.arange(count)], dim=1))
            columns = zip(*parts, strict=True)
            self._found = ExperienceTensors(*(None if c[0] is None else torch.cat(c) for c in columns))
            self._rows, self._experiences = torch.cat(rows), experiences
        return self._found

    def _some(self, index: int, count: int) -> ExperienceTensors:
        test = self.tests[index]
        generator = torch.Generator().manual_seed(index)  # test sets may be sorted by class
        return _rows_of(test, torch.randperm(len(test.targets), generator=generator)[:count])


def _rows_of(samples: ExperienceTensors, rows: Tensor) -> ExperienceTensors:
    there = rows.to(samples.targets.device)
    return ExperienceTensors(*(None if column is None else column[there] for column in samples))


def watch_damage(plugins: Sequence[Any], past: PastSamples, stopwatch: Stopwatch) -> None:
    """Let plugins that treat a network note how far that moves the accuracy on what was learned before.

    Every entry of their history then says `accuracy_before` and `accuracy_after`: on samples of the experiences before
    the present one, just before and just after the intervention. There are none in the first experience. The first
    entry of every experience also says `activity_before` and `activity_after`, see `activity`.

    Args:
        plugins: The plugins of a run; those that do not intervene at single times are left alone.
        past: The samples.
        stopwatch: Is paused meanwhile.
    """
    for plugin in plugins:
        if isinstance(plugin, TreatmentPlugin):
            # On the object, for subclasses act before and after what they inherit.
            plugin.intervene = _watched(plugin, plugin.intervene, past, stopwatch)  # type: ignore[method-assign]


def _watched(
    plugin: TreatmentPlugin, intervene: Callable[[Any], None], past: PastSamples, stopwatch: Stopwatch
) -> Callable[[Any], None]:
    @functools.wraps(intervene)
    def watched(strategy: Any) -> None:
        experience = int(strategy.experience.current_experience)
        with stopwatch.paused():
            samples = past.of(experience)
            before = None if samples is None else evaluate(strategy.model, samples)
            first = not plugin.history or plugin.history[-1]["experience"] != experience
            fired = activity(plugin, strategy) if first else None
        treatments = len(plugin.history)
        intervene(strategy)
        if len(plugin.history) == treatments:
            return
        with stopwatch.paused():
            if samples is not None:
                plugin.history[-1].update(accuracy_before=before, accuracy_after=evaluate(strategy.model, samples))
            if fired is not None:
                plugin.history[-1].update(activity_before=fired, activity_after=activity(plugin, strategy))

    return watched


def activity(plugin: TreatmentPlugin, strategy: Any) -> dict[str, list[int]]:
    """Count how many units fire how often on the training samples on which a plugin judges them.

    Returns:
        By layer, `BINS` counts of units: by the share of samples and positions on which they are active, in equal bins
        from 0 to 1, the last with 1 itself.
    """
    found = {}
    for name, stat in plugin.activity(strategy).items():
        if not stat.count:  # not in this pass, as another task's layers
            continue
        bins = (stat.fired * BINS // stat.count).clamp(max=BINS - 1)
        found[name] = bins.bincount(minlength=BINS).tolist()
    return found
