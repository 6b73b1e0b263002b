"""What treating costs: a step with a method, and a treatment, in units of a naive step.

Steps are those of the defaults: what a method does every ten updates, or whenever a replacement is due, is spread over
them. Treatments, which come between experiences, after epochs or after a thousand iterations, are left out of the steps
and timed by themselves, one a round.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from benchmarks.computing import Computing
from benchmarks.cost import cases
from benchmarks.cost.cases import Case, Trainer, computed
from benchmarks.cost.peers import installed
from benchmarks.cost.table import Line
from benchmarks.cost.timing import Block, clock, interleave, ratio
from benchmarks.models import build_model
from plasticity.errors import UserError
from plasticity.plugins import PlasticityInjectionPlugin, TreatmentPlugin
from plasticity.plugins.stepwise import StepwisePlugin
from strategies import STRATEGIES, Context, build_plugins, change_network, choose_optimizer

LEFT_OUT = {"naive", "fresh", "replay", "hyper-hypo-random"}
"""No treatments, or the same as another."""
STEPS = {"slim-resnet18": 4, "pairs-conv": 100, "mlp-3x1000": 50}
"""Mini-batches of a block: a few tenths of a second, and where steps are short many, over which rare work is spread."""
CASES = tuple(replace(case, steps=STEPS[case.model]) for case in cases.CASES)
TOGETHER = 6
"""How many methods share the naive runs that they are compared with."""


class Method:
    """Trains by a strategy; each call is a block of steps and, where the strategy has treatments, one of these.

    Args:
        name: Of the strategy, or of several combined, with options if wanted.
        case: The network.
        device: Where.

    Attributes:
        trainer: What trains.
        treatments: Of each call the seconds that a treatment took, NaN if there was none.

    Raises:
        UserError: Now or in the first call, if the method cannot treat the network.
    """

    def __init__(self, name: str, case: Case, device: torch.device) -> None:
        example = (torch.randn(4, *case.shape),)

        def change(model: nn.Module) -> nn.Module:
            return change_network(name, model.cpu(), example).to(device)

        def fresh() -> nn.Module:
            return case.computing.network(change(build_model(case.model, case.classes, case.shape)))

        plugins = build_plugins(name, Context(fresh, 0, 1, case.batch_size, 10))
        self._treating = [each for each in plugins if isinstance(each, TreatmentPlugin)]
        self._treating = [each for each in self._treating if not isinstance(each, StepwisePlugin)]
        for plugin in self._treating:
            if isinstance(plugin, PlasticityInjectionPlugin):
                plugin.experience = 0  # the only one of this stream: act when it comes again
            plugin.intervene = self._timed(plugin, plugin.intervene)  # type: ignore[method-assign]  # timed in place
        self.trainer = Trainer(case, device, plugins, change=change)
        parameters = list(self.trainer.strategy.model.parameters())
        optimizer = choose_optimizer(name, parameters, "adam", 1e-3)
        if optimizer is not None:
            self.trainer.strategy.optimizer = optimizer
        self.treatments: list[float] = []
        self._latest = float("nan")

    def __call__(self) -> float:
        """Train for one experience, and treat if that did not come up in it; returns seconds a step."""
        self._latest = float("nan")
        seconds = self.trainer()
        strategy = self.trainer.strategy
        for plugin in self._treating:
            if math.isnan(self._latest) and isinstance(plugin.every, int):
                strategy.experience = self.trainer.experience  # Avalanche has let go of it
                plugin.intervene(strategy)
        self.treatments.append(self._latest)
        return seconds

    def _timed(self, plugin: TreatmentPlugin, intervene: Callable[..., None]) -> Callable[..., None]:
        def timed(strategy: Any) -> None:
            before, start = len(plugin.history), clock(strategy.device)
            intervene(strategy)
            if len(plugin.history) > before:
                self._latest = clock(strategy.device) - start

        return timed


def measure(
    device: torch.device,
    rounds: int,
    cases: Iterable[Case] = CASES,
    strategies: Iterable[str] | None = None,
    *,
    computing: Computing | None = None,
) -> Iterator[Line]:
    """Measure every method on each network.

    Other packages that do the same as `continual-backprop` are measured beside it where they are installed, see
    `benchmarks.cost.peers`.

    Args:
        device: Where.
        rounds: Interleaved rounds.
        cases: The networks.
        strategies: Names, with options if wanted; None: all but `LEFT_OUT`, and a method that cannot treat a network is
            passed over there.
        computing: How the networks compute; None: as by default.

    Raises:
        UserError: If a strategy was asked for by its name, and a network does not admit it.
    """
    names = [name for name in STRATEGIES if name not in LEFT_OUT] if strategies is None else list(strategies)
    for case in computed(cases, computing or Computing()):
        naive = Trainer(case, device)
        treatments: list[Line] = []
        for first in range(0, len(names), TOGETHER):
            blocks = dict(_ready(names[first : first + TOGETHER], case, device, strategies is None))
            if "continual-backprop" in blocks:
                blocks.update({name: make(case, device) for name, make in installed().items()})
            times = interleave({"naive": naive, **blocks}, rounds)
            for name, block in blocks.items():
                yield Line("treating", case.name, name, "step / naive step", ratio(times, name, "naive"))
                taken = block.treatments[-rounds:] if isinstance(block, Method) else []
                if taken and not any(map(math.isnan, taken)):
                    found = ratio({**times, name: taken}, name, "naive")
                    treatments.append(Line("treating", case.name, name, "treatment / naive step", found))
        yield from treatments


def _ready(names: Iterable[str], case: Case, device: torch.device, lenient: bool) -> Iterator[tuple[str, Block]]:
    """Make those methods that can treat a network, and let them train once: then they have seen it."""
    for name in names:
        try:
            method = Method(name, case, device)
            method()
        except UserError as error:
            if lenient:
                continue
            raise UserError(f"{name} on {case.model}: {error}") from error
        yield name, method
