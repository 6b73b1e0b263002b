"""What watching costs: a training step with and without the metrics of plasticity, of the same strategy."""

from collections.abc import Iterable, Iterator

import torch
from avalanche.training.plugins import SupervisedPlugin

from benchmarks.cost.cases import CASES, Case, Trainer
from benchmarks.cost.table import Line
from benchmarks.cost.timing import interleave, ratio
from plasticity.metrics import plasticity_metrics


class PlainHooks(SupervisedPlugin):  # type: ignore[type-arg]
    """What one would write in a minute: a forward hook on every activation that adds up a sum and a count."""

    def before_training_exp(self, strategy, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Put the hooks in place."""
        self.sums: dict[torch.nn.Module, torch.Tensor] = {}
        self.count = 0
        kinds = (torch.nn.ReLU,)
        self.handles = [m.register_forward_hook(self._add) for m in strategy.model.modules() if isinstance(m, kinds)]

    def _add(self, module, inputs, output):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            dims = [0, *range(2, output.dim())]
            total = output.abs().sum(dims)
            self.sums[module] = self.sums[module] + total if module in self.sums else total
            self.count += len(output)

    def after_training_exp(self, strategy, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Take them away."""
        for handle in self.handles:
            handle.remove()


def measure(device: torch.device, rounds: int, cases: Iterable[Case] = CASES) -> Iterator[Line]:
    """Measure each network.

    Args:
        device: Where.
        rounds: Interleaved rounds.
        cases: The networks.
    """
    for case in cases:
        blocks = {
            "naive": Trainer(case, device),
            "plasticity_metrics(epoch=True)": Trainer(case, device, metrics=[plasticity_metrics(epoch=True)]),
        }
        if case.model != "slim-resnet18":  # whose activations are functions, which such hooks do not see
            blocks["plain hooks on activations"] = Trainer(case, device, [PlainHooks()])
        times = interleave(blocks, rounds)
        for name in blocks:
            if name != "naive":
                yield Line("watching", case.name, name, "step / naive step", ratio(times, name, "naive"))
