"""What plugins share that treat: when they act in a strategy, on which inputs, and how they report."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from avalanche.benchmarks import OnlineCLExperience
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.utils import _at_task_boundary
from torch import Tensor

from plasticity.distributed import batches_of_all, group_of, require_agreement, share_buffers
from plasticity.errors import UserError
from plasticity.exclusion import Exclude
from plasticity.finiteness import CheckedProbe, NonFiniteError, nonfinite_weights
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.treatment import Treatment
from plasticity.plugins.beside import refuse_conflicts, refuse_empty
from plasticity.plugins.inputs import model_inputs
from plasticity.plugins.parts import Parts
from plasticity.plugins.publishing import publish
from plasticity.plugins.removed import removed_units, still_removed
from plasticity.plugins.reporting import Reporting
from plasticity.plugins.treating import Treating
from plasticity.plugins.withholding import nonfinite_loss, withhold
from plasticity.preview import Preview
from plasticity.probe import Probe, RecentInputs
from plasticity.values import check_flag
from plasticity.watching.unit_statistics import UnitStatistics

Every = str | int


class TreatmentPlugin(Treating, Reporting, SupervisedPlugin[Any], supports_distributed=True):
    """A plugin that treats hidden units at chosen times, judged on the latest training inputs.

    Subclasses implement `treat`, and `tell_others` if other plugins have to follow.

    Args:
        every: When to treat: "experience", before each experience but the first; "epoch", after each epoch, and at the
            end of an experience that an online stream shows in parts; or a number of iterations.
        probe_samples: On how many training samples units are judged, at most; they are the latest ones, and no more
            than the experience has, so that its epochs count once.
        seed: Seed of the plugin's own random generator.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.

    Attributes:
        excluded: The layers that are left alone.
        latest: With `dry_run`, what the latest treatment would have done; `print` shows it.
        history: The reports of all interventions so far, as plain dictionaries with their "experience"; see
            `take_history` for long streams.

    Raises:
        UserError: If an argument has no meaning.
    """

    acts: Collection[str] = ("moves",)

    def __init_subclass__(cls, supports_distributed: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(supports_distributed=supports_distributed, **kwargs)

    def __init__(
        self,
        *,
        every: Every = "experience",
        probe_samples: int = 2048,
        seed: int = 0,
        groups: Iterable[UnitGroup] | None = None,
        exclude: Exclude = None,
        dry_run: bool = False,
    ) -> None:
        SupervisedPlugin.__init__(self)  # type: ignore[no-untyped-call]  # Avalanche does not annotate it
        if every not in ("experience", "epoch") and not _is_count(every):
            raise UserError(f'every must be "experience", "epoch" or a whole number of iterations, not {every!r}')
        Treating.__init__(self, probe_samples=probe_samples, seed=seed, groups=groups, exclude=exclude)
        self.every = every
        self.dry_run = check_flag("dry_run", dry_run)
        self.latest: Preview | None = None
        self.history: list[dict[str, Any]] = []
        self.reported = 0
        self._recent = RecentInputs(probe_samples)
        self._online = 0
        self._shown = Parts()
        self._last_part = True
        self._iterations = 0
        self._units: UnitGroups | None = None

    # --- for subclasses ----------------------------------------------------------------------------------------

    @property
    def between(self) -> bool:
        """Whether the plugin acts before an experience."""
        return self.every == "experience"

    def tell_others(self, strategy: Any, report: Treatment) -> None:
        """Tell the strategy's other plugins of a change beneath them, right after a treatment; by default nothing.

        See `plasticity.plugins.following`.
        """

    # --- Avalanche's callbacks ---------------------------------------------------------------------------------

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse what leaves no room for the plugin, see `plasticity.plugins.beside`."""
        refuse_conflicts(self, strategy)

    def after_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse an experience without samples."""
        refuse_empty(self, strategy)

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Treat between experiences, once the head and the optimizer are ready for the next one.

        Raises:
            UserError: If an online stream does not tell where they are: it would be treated before every few samples.
        """
        online = isinstance(strategy.experience, OnlineCLExperience)
        if online and (self.between or self.every == "epoch") and not strategy.experience.access_task_boundaries:
            other = ", or every= a number of iterations" if self.every == "epoch" else ""
            raise UserError(f"{type(self).__name__} needs a stream that tells the boundaries of its experiences{other}")
        self._last_part = self._shown.complete(strategy.experience)
        self._units = None
        if self.every == "experience" and self._recent.samples and _at_task_boundary(strategy.experience):
            self.intervene(strategy)
        available = len(strategy.adapted_dataset)
        if online:  # each has only a few samples
            self._online = available = self._online + available
        self._recent.limit = min(self.probe_samples, available)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the latest inputs, and treat if it is time."""
        self._recent.add(model_inputs(strategy))
        if self._iterations == 0:
            self._units = self.resolve(strategy)
        self._iterations += 1
        if isinstance(self.every, int) and self._iterations % self.every == 0:
            self.intervene(strategy)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Treat after each epoch, if asked for; a few samples of an online stream are none."""
        if self.every == "epoch" and self._last_part:
            self.intervene(strategy)

    # --- doing it ----------------------------------------------------------------------------------------------

    def resolve(self, strategy: Any) -> UnitGroups:
        """Find the units of the strategy's present model that may be treated.

        Raises:
            UserError: If it has none.
        """
        return self.units_of(strategy.model, lambda: self._recent.probe(strategy.device).example())

    def probe(self, strategy: Any) -> Probe:
        """Return the training samples on which the plugin judges units, those of all processes."""
        group = group_of(strategy.model)
        if group is None:
            return self._recent.probe(strategy.device)
        share_buffers(strategy.model, group)
        latest = RecentInputs(self._recent.limit)
        for batch in batches_of_all(self._recent.batches(), self._recent.limit, group):
            latest.add(batch)
        return latest.probe(strategy.device)

    def activity(self, strategy: Any) -> dict[str, UnitStatistics]:
        """Return what units do now on the training samples on which the plugin judges them, by group name."""
        watched, _ = self.probe(strategy).watch(strategy.model, self.resolve(strategy))
        return watched.statistics()

    def intervene(self, strategy: Any) -> None:
        """Treat the network now and report it to the strategy's loggers and in `history`.

        What any plugin has removed from the network stays removed. Where the network is not finite nothing is treated,
        and a warning says why; `history` then has the reason under "withheld".
        """
        reason = nonfinite_weights(strategy.model)
        if reason is None:
            try:
                self._treat_now(strategy)
            except NonFiniteError as found:
                reason = str(found)
        if reason is not None:
            self.report({"iteration": self._iterations, **withhold(self, strategy, reason)})

    def _treat_now(self, strategy: Any) -> None:
        """Treat a network whose weights are finite.

        Raises:
            NonFiniteError: If its units, its outputs or the latest loss are not; nothing has changed then.
        """
        wrong = nonfinite_loss(strategy)
        if self._units is None:
            self._units = self.resolve(strategy)
        gone, self._removed = still_removed(strategy), removed_units(strategy)
        generator = self._own_generator()
        probe = CheckedProbe(self.probe(strategy).batches)
        if wrong is not None:
            probe.watch(strategy.model, self._units)  # which may know the reason
            raise NonFiniteError(wrong)
        subject = strategy.model, self._units, probe, strategy.optimizer, generator
        told: dict[str, Any] = {}
        if self.dry_run:
            self.latest = self._rehearse(*subject, strategy)
            report = self.latest.report
            told = {} if report is None else {"dry_run": True, "reasons": report.reasons}
        else:
            report = self.treat(*subject)
            if report is not None:
                self.tell_others(strategy, report)
            for removed in gone:
                removed.apply(strategy.model)
        require_agreement(strategy.model, group_of(strategy.model), type(self).__name__)
        self._generator_state = generator.get_state()
        if report is None:
            return
        experience = int(strategy.experience.current_experience)
        self.report({"experience": experience, "iteration": self._iterations, **report.as_dict(), **told})
        numbers = {**report.counts, "output_shift": report.output_shift}
        publish(strategy, report.method, numbers, dry_run=self.dry_run)

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state as tensors and plain values."""
        return {
            "generator": self._generator_state.clone(),
            "iterations": self._iterations,
            "limit": self._recent.limit,
            "online": self._online,
            "shown": self._shown.seen,
            "history": [dict(entry) for entry in self.history],
            "reported": self.reported,
            "probe": [
                tuple(part.clone() if isinstance(part, Tensor) else part for part in batch)
                for batch in self._recent.batches()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._generator_state = state["generator"].clone()
        self._iterations = int(state["iterations"])
        self._online = int(state["online"])
        self._shown.seen = int(state.get("shown", 0))  # not there in states of before
        self.history = [dict(entry) for entry in state["history"]]
        self.reported = int(state.get("reported", len(self.history)))  # not there in states of before
        self._recent = RecentInputs(int(state["limit"]))
        for batch in state["probe"]:
            self._recent.add(tuple(batch))
        self._units = None

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_units"] = None
        return state


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
