"""What treating costs: a step with a method, and a treatment between experiences, in units of a naive step."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.cost.cases import CASES, Case, Trainer
from benchmarks.cost.table import Line
from benchmarks.cost.timing import clock, interleave, ratio
from plasticity.errors import UserError
from plasticity.plugins import TreatmentPlugin
from strategies import STRATEGIES, Context, parse

LEFT_OUT = {"naive", "fresh", "replay", "hyper-hypo-random", "plasticity-injection", "demon-pruning-shrink"}
"""No treatments, or such that do not treat the same network again and again."""


def measure(
    device: torch.device, rounds: int, cases: Iterable[Case] = CASES, strategies: Iterable[str] | None = None
) -> Iterator[Line]:
    """Measure every method on each network; a method that cannot treat one is passed over.

    Args:
        device: Where.
        rounds: Interleaved rounds.
        cases: The networks.
        strategies: Names, with options if wanted; None: all but `LEFT_OUT`.
    """
    names = [name for name in STRATEGIES if name not in LEFT_OUT] if strategies is None else list(strategies)
    for case in cases:
        naive = Trainer(case, device)
        naive()
        for name in names:
            treatments: list[float] = []
            try:
                trainer = _trainer(name, case, device, treatments)
                trainer(), trainer()
            except UserError:
                continue
            treatments.clear()
            times = interleave({"naive": naive, name: trainer}, rounds)
            yield Line("treating", case.name, name, "step / naive step", ratio(times, name, "naive"))
            if len(treatments) >= rounds:
                times[name] = treatments[-rounds:]
                yield Line("treating", case.name, name, "treatment / naive step", ratio(times, name, "naive"))


def _trainer(name: str, case: Case, device: torch.device, treatments: list[float]) -> Trainer:
    """Return what trains by a strategy and notes how long treatments between experiences take."""
    (strategy,) = parse(name)
    example = (torch.randn(4, *case.shape),)

    def change(model: nn.Module) -> nn.Module:
        return model if strategy.network is None else strategy.network(model.cpu(), example).to(device)

    context = Context(lambda: nn.Identity(), 0, 1, case.batch_size, 10)
    plugins = strategy.plugins(context)
    for plugin in plugins:
        if isinstance(plugin, TreatmentPlugin) and plugin.every == "experience":
            plugin.intervene = _timed(plugin.intervene, treatments)  # type: ignore[method-assign]  # timed in place
    trainer = Trainer(case, device, plugins, change=change)
    if strategy.optimizer is not None:
        parameters = list(trainer.strategy.model.parameters())
        trainer.strategy.optimizer = strategy.optimizer(parameters, "adam", 1e-3)
    return trainer


def _timed(function: Callable[..., None], taken: list[float]) -> Callable[..., None]:
    def timed(strategy: Any) -> None:
        start = clock(strategy.device)
        function(strategy)
        taken.append(clock(strategy.device) - start)

    return timed
