"""What watching costs: a training step with and without the metrics of plasticity, of the same strategy."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin

from benchmarks.computing import Computing
from benchmarks.cost.cases import CASES, Case, Trainer, computed
from benchmarks.cost.table import Line
from benchmarks.cost.timing import interleave_builds, ratio
from plasticity.metrics import plasticity_metrics

SAMPLED = 10
"""Of so many mini-batches one is looked at, where not all are."""

EXACT = "plasticity_metrics(epoch=True)"
EVERY = f"plasticity_metrics(epoch=True, every={SAMPLED})"
GRADIENTS = 'plasticity_metrics(epoch=True, measures=["NotLearningUnits"])'
HOOKS = "plain hooks on activations"


class PlainHooks(SupervisedPlugin[Any]):
    """What one would write in a minute: a forward hook on every activation that adds up a sum and a count."""

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Put the hooks in place."""
        self.sums: dict[torch.nn.Module, torch.Tensor] = {}
        self.count = 0
        kinds = (torch.nn.ReLU,)
        self.handles = [m.register_forward_hook(self._add) for m in strategy.model.modules() if isinstance(m, kinds)]

    def _add(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        with torch.no_grad():
            dims = [0, *range(2, output.dim())]
            total = output.abs().sum(dims)
            self.sums[module] = self.sums[module] + total if module in self.sums else total
            self.count += len(output)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take them away."""
        for handle in self.handles:
            handle.remove()


def measure(
    device: torch.device, rounds: int, cases: Iterable[Case] = CASES, *, computing: Computing | None = None
) -> Iterator[Line]:
    """Measure each network.

    Args:
        device: Where.
        rounds: Interleaved rounds.
        cases: The networks.
        computing: How they compute; None: as by default.
    """
    for case in computed(cases, computing or Computing()):
        case = replace(case, steps=-(-case.steps // SAMPLED) * SAMPLED)  # each sampled block has its share of looks
        times = interleave_builds(partial(_blocks, case, device), rounds)
        for name in times:
            if name != "naive":
                yield Line("watching", case.name, name, "step / naive step", ratio(times, name, "naive"))


def _blocks(case: Case, device: torch.device) -> dict[str, Trainer]:
    """Build a network for each way of watching."""
    blocks = {
        "naive": Trainer(case, device),
        EXACT: Trainer(case, device, metrics=[plasticity_metrics(epoch=True)]),
        EVERY: Trainer(case, device, metrics=[plasticity_metrics(epoch=True, every=SAMPLED)]),
        GRADIENTS: Trainer(case, device, metrics=[plasticity_metrics(epoch=True, measures=["NotLearningUnits"])]),
    }
    # Such hooks do not see activations that are functions, and graphs that are compiled before them do not call them.
    if case.model != "slim-resnet18" and not case.computing.compile:
        blocks[HOOKS] = Trainer(case, device, [PlainHooks()])
    return blocks
