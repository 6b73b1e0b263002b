"""What the metrics measure, and when."""

from __future__ import annotations

from dataclasses import dataclass

from plasticity.errors import UserError
from plasticity.metrics.measured import IN_TRAINING, MEASURES, Needs
from plasticity.values import check_flag, shown
from plasticity.watching.activity import check_every


@dataclass(frozen=True)
class Settings:
    """The arguments of `plasticity_metrics`, which explains them.

    Attributes:
        measures: Names of the measures, each once.
        minibatch: Emit after every training iteration.
        epoch: Emit after every training epoch.
        experience: Emit after the evaluation of each experience.
        stream: Emit after an evaluation.
        per_layer: Emit a value for every layer too.
        tau: Largest score of a dormant unit, 0..1.
        over_active_bound: Least share of samples x positions on which an over-active unit fires, 0..1.
        features: Rows of the penultimate representation on which ranks are computed, at most.
        every: Of so many training mini-batches one is looked at.
        probed: Units and features are looked at on a fixed probe.

    Raises:
        UserError: If a measure is unknown, a setting has no meaning, or nothing could ever be emitted.
    """

    measures: tuple[str, ...]
    minibatch: bool
    epoch: bool
    experience: bool
    stream: bool
    per_layer: bool
    tau: float
    over_active_bound: float
    features: int
    every: int = 1
    probed: bool = False

    def __post_init__(self) -> None:
        for name in self.measures:
            if name not in MEASURES:
                raise UserError(f"unknown measure {name!r}; there are: {', '.join(MEASURES)}")
        if not self.measures:
            raise UserError(f"name at least one measure; there are: {', '.join(MEASURES)}")
        for name, value in {"tau": self.tau, "over_active_bound": self.over_active_bound}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(f"{name} must be between 0 and 1, not {shown(value)}")
        if not isinstance(self.features, int) or isinstance(self.features, bool) or self.features < 1:
            raise UserError(f"features must be at least 1, not {shown(self.features)}")
        for name in ("minibatch", "epoch", "experience", "stream", "per_layer"):
            check_flag(name, getattr(self, name))
        check_every(self.every)
        if self.every > 1 and (self.probed or not self.in_training):
            what = "there is a probe" if self.probed else "only evaluations are"
            raise UserError(f"every={self.every} is about training mini-batches that are watched, and {what}")
        in_training = [name for name in self.measures if MEASURES[name].needs in IN_TRAINING]
        if not self.in_training and len(in_training) == len(self.measures):
            raise UserError(
                f"{' and '.join(in_training)} is emitted in training only: ask for minibatch=True or epoch=True"
            )

    @property
    def in_training(self) -> bool:
        """Whether anything is emitted in training."""
        return self.minibatch or self.epoch

    @property
    def in_evaluation(self) -> bool:
        """Whether anything is emitted in evaluation."""
        return self.experience or self.stream

    def needs(self, what: Needs) -> bool:
        """Whether a measure is computed from this."""
        return any(MEASURES[name].needs == what for name in self.measures)

    @property
    def observed(self) -> bool:
        """Whether units or representations are looked at."""
        return self.needs("units") or self.needs("features")

    @property
    def rows(self) -> int:
        """How many rows of the representation are kept."""
        return self.features if self.needs("features") else 0
