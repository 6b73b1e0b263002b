"""What runs that are not finished have told so far."""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Unfinished:
    """A run that is going on, or has been interrupted.

    Attributes:
        benchmark: name of the benchmark.
        strategy: name of the strategy.
        seed: the seed of the run.
        experiences: length of the stream.
        learning_accuracy: test accuracy just after learning, by index of the experience, as far as it has come.
        dead_fraction: share of dead units after an experience, likewise.
    """

    benchmark: str
    strategy: str
    seed: int
    experiences: int
    learning_accuracy: dict[int, float] = field(default_factory=dict)
    dead_fraction: dict[int, float] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """How many experiences it has behind it."""
        return len(self.dead_fraction)


@dataclass(frozen=True)
class Live:
    """What a page says that is written while runs are going on.

    Attributes:
        unfinished: the runs that are not finished.
        seconds: after how many seconds the page loads itself again.
        written: when it was written.
    """

    unfinished: list[Unfinished]
    seconds: float
    written: str


def unfinished_runs(directory: Path) -> list[Unfinished]:
    """Reads what the runner has not finished yet.

    Args:
        directory: the folder of results.

    Returns:
        The runs in hidden folders, in order of benchmark, strategy and seed. What is being written is read as far as it
        is whole.
    """
    found = []
    for folder in sorted(directory.glob("*/*/.seed-*.partial-*")):
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            run = Unfinished(config["benchmark"], config["strategy"], config["seed"], config["settings"]["experiences"])
            lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError, KeyError, TypeError):
            continue  # just begun, just finished, or no run
        for line in lines:
            _note(run, line)
        found.append(run)
    return sorted(found, key=lambda run: (run.benchmark, run.strategy, run.seed))


def _note(run: Unfinished, line: str) -> None:
    if "_Exp/eval_phase/" not in line:
        return
    try:
        entry = json.loads(line)
        name, index = entry["name"].rsplit("/Exp", 1)
        value = float(entry["value"])
    except (ValueError, KeyError, TypeError):
        return  # the last line, half written
    if name == "Top1_Acc_Exp/eval_phase/test_stream":
        run.learning_accuracy.setdefault(int(index), value)  # the first test of an experience is just after learning it
    elif name == "DeadUnits_Exp/eval_phase/train_stream":
        run.dead_fraction[int(index)] = value
