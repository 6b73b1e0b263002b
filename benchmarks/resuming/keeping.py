"""When a run is saved, what of it, and how it goes on from there."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avalanche.models.utils import avalanche_model_adaptation

from benchmarks.observing import Stopwatch
from benchmarks.record import Record
from benchmarks.resuming.buffers import BufferIndex
from benchmarks.resuming.files import CheckpointFiles, Found
from benchmarks.resuming.loop import Draws, KeptNaive
from benchmarks.resuming.marks import ChangedError, Marks
from benchmarks.resuming.plain import NotPlainError, UnreadableError, from_bytes, to_bytes
from benchmarks.resuming.plugins import NoStateError, load_plugin_states, plugin_states, whole_within
from benchmarks.resuming.randomness import load_random_state, random_state
from plasticity.errors import UserError
from plasticity.network_state import load_network_state, load_optimizer_state, network_state, optimizer_state

Tell = Callable[[str], None]


class CannotResumeError(Exception):
    """A checkpoint that a run cannot go on from; the message says why. The run has to be built anew."""


@dataclass
class Parts:
    """What makes up a run.

    Attributes:
        strategy: The Avalanche strategy.
        plugins: Those of its plugins that have a state.
        experiences: The training stream.
        record: What was measured.
        stopwatch: Time of training.
        metrics: The file of metric values; whoever writes it appends.
    """

    strategy: KeptNaive
    plugins: list[Any]
    experiences: Any
    record: Record
    stopwatch: Stopwatch
    metrics: Path


class Keeping:
    """Saves a run after every experience, and now and then in between, and puts it back.

    A checkpoint has the state after an experience, or after a part of one that comes in parts. One taken within an
    experience has the state at its beginning, too: the experience is begun anew from there, which sets up whatever
    plugins set up for it, and then passed over up to where the run was; see `benchmarks.resuming.loop`.

    Args:
        files: Where checkpoints go.
        minutes: How long to go on within an experience without one; 0: always to its end.
        tell: Told in words what did not go as it should.
    """

    def __init__(self, files: CheckpointFiles, minutes: float, tell: Tell):
        self.files = files
        self.minutes = minutes
        self.tell = tell
        self._parts: Parts | None = None
        self._buffers: BufferIndex | None = None
        self._marks = Marks()
        self._on = False
        self._tried = False
        self._within = False
        self._place = (0, 0)  # experiences done, and parts of the next one
        self._boundary: bytes | None = None
        self._start: dict[str, Any] | None = None
        self._saved = time.monotonic()

    # --- going on ----------------------------------------------------------------------------------------------

    def found(self) -> Iterator[Found]:
        """Return the checkpoints that can be tried, the latest first, telling of those that cannot."""
        found = list(self.files.read())
        for problem in self.files.problems:
            self.tell(f"{problem}; {'the other one is' if found else 'the run begins anew'}")
        return iter(found)

    def begin(self, parts: Parts) -> None:
        """Take charge of a run that is at its beginning."""
        if self._tried:
            self.tell("the run begins anew")
        with suppress(OSError):
            self.files.remove()
        self._take(parts)
        self._on = True
        self._keep_boundary((0, 0))

    def resume(self, parts: Parts, found: Found) -> None:
        """Take charge of a run, and put it where a checkpoint was taken.

        Args:
            parts: Of the run, just built from the same settings.
            found: The checkpoint.

        Raises:
            CannotResumeError: If that cannot be done.
        """
        self._take(parts)
        self._tried = True
        with _explaining():
            states = [from_bytes(part) for part in found.parts]
            within = states[1] if len(states) > 1 else None
            metrics = (states[0] if within is None else within["state"])["metrics"]
            self._marks.go_back(parts.metrics, metrics)
            self._load_boundary(states[0])
        self._on = True
        self._boundary, self._start = found.parts[0], within
        self._place = (int(states[0]["experience"]), int(states[0]["part"]))

    @property
    def place(self) -> tuple[int, int]:
        """How many experiences are done, and how many parts of the next one."""
        return self._place

    # --- saving ------------------------------------------------------------------------------------------------

    def after_experience(self, done: int) -> None:
        """Save after an experience."""
        self._keep_boundary((done, 0))
        self._write()

    def parts_of(self, shown: list[Any]) -> Iterator[Any]:
        """Return the parts of an experience that are still to come, and save between them when it is time."""
        experience, first = self._place
        for number in range(first, len(shown)):
            yield shown[number]
            if number + 1 < len(shown) and self._is_time():
                with self._charge.stopwatch.paused():
                    self._keep_boundary((experience, number + 1))
                    self._write()

    def finish(self) -> None:
        """Remove the checkpoints: the run is done."""
        self.files.remove()

    def _keep_boundary(self, place: tuple[int, int]) -> None:
        self._place, self._boundary = place, None
        if not self._on:
            return
        record = self._charge.record.state_dict()
        try:
            self._boundary = to_bytes(
                {"experience": place[0], "part": place[1], "record": record, **self._state(place)}
            )
        except (NoStateError, NotPlainError, UserError) as error:
            if place == (0, 0) and isinstance(error, UserError):
                return  # a network that takes its shape from the data
            self._on = False
            self.tell(f"{error}: the run goes on without checkpoints")
            with suppress(OSError):
                self.files.remove()

    def _write(self, *more: bytes) -> None:
        self._saved = time.monotonic()
        if self._boundary is None:
            return
        try:
            self.files.write([self._boundary, *more])
        except OSError as error:
            self.tell(f"no checkpoint could be written ({error.strerror}); the one before is kept, and the run goes on")

    # --- within an experience: see benchmarks.resuming.loop ----------------------------------------------------

    def start(self) -> tuple[int, int, Draws] | None:
        """Return where to go on within the experience that begins; None: at its beginning."""
        start = self._start
        return None if start is None else (int(start["epoch"]), int(start["done"]), dict(start["draws"]))

    def go_on(self) -> None:
        """Put everything into the state it had there.

        Raises:
            CannotResumeError: If that cannot be done.
        """
        assert self._start is not None
        start, self._start = self._start, None
        with _explaining():
            self._marks.go_back(self._charge.metrics, start["state"]["metrics"])
            self._load(start["state"])

    def due(self) -> bool:
        """Say whether it is time to save within an experience."""
        return self._within and self._boundary is not None and self._is_time()

    def save(self, epoch: int, done: int, draws: Draws) -> None:
        """Save within an experience."""
        with self._charge.stopwatch.paused():
            try:
                state = {"epoch": epoch, "done": done, "draws": draws, "state": self._state(self._place)}
                content = to_bytes(state)
            except (NoStateError, NotPlainError, UserError) as error:
                self._within = False
                self.tell(f"{error}: from now on the run is saved only after experiences")
                return
            self._write(content)

    def _is_time(self) -> bool:
        return self._on and self.minutes > 0 and time.monotonic() - self._saved >= 60 * self.minutes

    # --- the state ---------------------------------------------------------------------------------------------

    @property
    def _charge(self) -> Parts:
        assert self._parts is not None
        return self._parts

    def _take(self, parts: Parts) -> None:
        self._parts = parts
        self._buffers = BufferIndex(parts.experiences)
        self._within = whole_within(parts.plugins)
        self._marks = Marks()
        parts.strategy.keeper = self

    def _state(self, place: tuple[int, int]) -> dict[str, Any]:
        run = self._charge
        assert self._buffers is not None
        strategy = run.strategy
        return {
            "stopwatch": run.stopwatch.state_dict(),  # first of all: what follows is not training
            "clock": {name: value for name, value in vars(strategy.clock).items() if isinstance(value, int)},
            "network": network_state(strategy.model),
            "optimizer": optimizer_state(strategy.optimizer, strategy.model),
            "plugins": plugin_states(run.plugins, self._buffers, place[0] + (place[1] > 0)),
            "metrics": self._marks.mark(run.metrics),
            "random": random_state(),
        }

    def _load_boundary(self, state: dict[str, Any]) -> None:
        run = self._charge
        done, part = int(state["experience"]), int(state["part"])
        for number in range(done + (part > 0)):  # heads come with the experiences
            avalanche_model_adaptation(run.strategy.model, run.experiences[number])
        run.record.load_state_dict(state["record"])
        self._load(state)
        if done + part:
            run.strategy.optimized_param_id = dict(run.strategy.model.named_parameters())

    def _load(self, state: dict[str, Any]) -> None:
        run = self._charge
        assert self._buffers is not None
        strategy = run.strategy
        vars(strategy.clock).update(state["clock"])
        load_network_state(strategy.model, state["network"])
        load_optimizer_state(strategy.optimizer, strategy.model, state["optimizer"])
        load_plugin_states(run.plugins, state["plugins"], self._buffers)
        run.stopwatch.load_state_dict(state["stopwatch"])
        load_random_state(state["random"])


@contextmanager
def _explaining() -> Iterator[None]:
    """Say of whatever goes wrong in loading that a checkpoint cannot be used."""
    try:
        yield
    except (UserError, NoStateError, UnreadableError, ChangedError, OSError) as error:
        raise CannotResumeError(str(error)) from error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CannotResumeError(f"{type(error).__name__}: {error}") from error
