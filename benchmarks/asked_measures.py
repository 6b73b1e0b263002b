"""What a run measures only if it is asked to, with `run --measure A,B`, since it takes time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from benchmarks.judging import finite
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


class SamplePlasticityPlugin(SupervisedPlugin[Any]):
    """Notes how much of the loss of each mini-batch its own step takes away; it comes before all other plugins.

    The device is asked once, by `take`.

    Args:
        stopwatch: The run's, which stands still meanwhile.

    Source: Elsayed and Mahmood 2024, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning",
    section 3.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.stopwatch = stopwatch
        self._steps = StepWatch()
        self._shares: list[Tensor] = []

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
            self._shares.append(share)

    def state_dict(self) -> dict[str, Any]:
        """Return the shares since the last `take`."""
        return {"shares": torch.stack(self._shares) if self._shares else torch.zeros(0)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._shares = list(state["shares"].unbind())

    def take(self) -> float | None:
        """Return the mean over the steps since the last call; None if there were none or one is not finite."""
        shares, self._shares = self._shares, []
        return finite(torch.stack(shares).mean()) if shares else None


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
