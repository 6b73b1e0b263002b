"""What a run measures only if it is asked to, with `run --measure A,B`, since it takes time."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from benchmarks.judging import finite
from benchmarks.noting import NotingPlugin
from benchmarks.observing import Stopwatch
from plasticity import measures
from plasticity.errors import UserError
from plasticity.measures.curvature import NotConvergedError, available
from plasticity.metrics.steps import StepWatch
from plasticity.probe import Probe

CURVATURE_SAMPLES = 256
SAMPLE_PLASTICITY, CURVATURE = "sample-plasticity", "curvature"

MEASURES: dict[str, str] = {
    SAMPLE_PLASTICITY: "the share of a mini-batch's loss that its own step takes away",
    CURVATURE: "the Hessian's largest eigenvalue, and the effective rank of the samples' gradients",
}
"""Names for `--measure`, and what they are."""


def check(names: Sequence[str]) -> None:
    """See that measures are known and what they need is installed.

    Raises:
        UserError: If not.
    """
    for name in names:
        if name not in MEASURES:
            raise UserError(f"unknown measure {name!r}: there are {', '.join(MEASURES)}")
    if CURVATURE in names:
        available()


class SamplePlasticityPlugin(NotingPlugin):
    """Notes how much of the loss of each mini-batch its own step takes away; it comes before all other plugins.

    Args:
        stopwatch: The run's, which stands still meanwhile.

    Source: Elsayed and Mahmood 2024, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning",
    section 3.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        super().__init__(stopwatch)
        self._steps = StepWatch()

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the random state of the pass."""
        with self.stopwatch.paused():
            self._steps.begin(strategy)

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the loss before the step."""
        with self.stopwatch.paused():
            self._steps.note(strategy)

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Compare it with the loss after the step."""
        with self.stopwatch.paused():
            share = self._steps.take(strategy)
        if share is not None:
            self.note(share)


class AskedMeasures:
    """Measures them in a run.

    Args:
        names: Of `MEASURES`.
        stopwatch: The run's.

    Attributes:
        plugins: What comes before all other plugins.
    """

    def __init__(self, names: Sequence[str], stopwatch: Stopwatch) -> None:
        self.plugins = [SamplePlasticityPlugin(stopwatch)] if SAMPLE_PLASTICITY in names else []
        self._curvature = CURVATURE in names

    def after_experience(
        self, model: nn.Module, samples: Callable[[int], tuple[Probe, Tensor]]
    ) -> dict[str, float | None]:
        """Measure what was asked for.

        Args:
            model: The network.
            samples: Returns so many training samples, and their classes.

        Returns:
            Numbers by name, None where one is not finite.
        """
        found: dict[str, float | None] = {}
        for plugin in self.plugins:
            found["sample_plasticity"] = plugin.take()
        if self._curvature:
            found.update(curvature(model, *samples(CURVATURE_SAMPLES)))
        return found


def curvature(model: nn.Module, samples: Probe, labels: Tensor) -> dict[str, float | None]:
    """Measure the curvature of the cross-entropy on training samples.

    Args:
        model: The network.
        samples: Its inputs.
        labels: (samples,) their classes.

    Returns:
        "largest_hessian_eigenvalue", None where it is not finite or not found, and "gradient_effective_rank".
    """
    parts = labels.split([len(batch[0]) for batch in samples.batches])
    batches = list(zip(samples.batches, parts, strict=True))
    loss = nn.CrossEntropyLoss()
    found: dict[str, Callable[..., Tensor]] = {
        "largest_hessian_eigenvalue": measures.largest_hessian_eigenvalue,
        "gradient_effective_rank": measures.gradient_effective_rank,
    }
    values: dict[str, float | None] = {}
    for name, measure in found.items():
        try:
            values[name] = finite(measure(model, loss, batches))
        except NotConvergedError:
            values[name] = None
    return values
