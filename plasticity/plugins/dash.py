"""DASH as an Avalanche plugin."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from plasticity.distributed import group_of, own_copy, process_count
from plasticity.errors import UserError
from plasticity.exclusion import Exclude
from plasticity.finiteness import NonFiniteError, all_finite
from plasticity.methods.dash import DASHRule, descent_direction, shrink_by_direction
from plasticity.methods.parameters import Entry
from plasticity.plugins.arguments import change_rule
from plasticity.plugins.whole_weights import WholeWeightPlugin
from plasticity.preview import Preview
from plasticity.values import check_count


class DASHPlugin(WholeWeightPlugin):
    """Before each experience but the first, shrink the weights that do not point where its data want them to go.

    That takes a forward and a backward pass over all data of the experience, in their order, with its `eval`
    transformations and in mini-batches of the strategy's size; the history says how many. Nothing else comes of it:
    gradients, buffers and random states are as before. See `plasticity.methods.dash`.

    Args:
        batch_size: Samples in a mini-batch of that pass; None: the strategy's, of all processes together.
        probe_samples: On how many training samples it is seen how far the outputs move, at most.
        seed: Seed of the plugin's own random generator, for dropout in that pass.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: `threshold`, `smoothing`, `optimizer_state`; see `plasticity.methods.dash.DASHRule`.

    Attributes:
        history: For every treatment the samples and mini-batches of the pass, and how far weights and outputs moved.

    Raises:
        UserError: If an argument is unknown or has no meaning.

    Source: Shin et al. 2024, arXiv 2410.23495.
    """

    method = "dash"
    acts = ("moves", "losses")

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        probe_samples: int = 2048,
        seed: int = 0,
        exclude: Exclude = None,
        dry_run: bool = False,
        **rule: Any,
    ) -> None:
        if batch_size is not None:
            check_count("batch_size", batch_size)
        self.rule = change_rule(self, DASHRule(), rule)
        super().__init__(
            optimizer_state=self.rule.optimizer_state,
            probe_samples=probe_samples,
            seed=seed,
            exclude=exclude,
            dry_run=dry_run,
        )
        self.batch_size = batch_size
        self._strategy: Any = None  # while it treats
        self._cost = (0, 0)

    @property
    def idle(self) -> bool:
        """Whether nothing changes."""
        return self.rule.threshold == 1

    def intervene(self, strategy: Any) -> None:
        """Treat the network now, by the data of the strategy's present experience."""
        self._strategy, treatments = strategy, len(self.history)
        try:
            super().intervene(strategy)
        finally:
            self._strategy = None
        if len(self.history) > treatments and "withheld" not in self.history[-1]:
            self.history[-1].update(gradient_samples=self._cost[0], gradient_batches=self._cost[1])

    def preview(
        self,
        model: nn.Module,
        batches: Iterable[Tensor | tuple[Any, ...]],
        optimizer: Optimizer | None = None,
    ) -> Preview:
        """Refuse: the data of an experience and a loss are needed, which only a strategy has."""
        raise UserError("DASHPlugin needs the data and the loss of a strategy: train with DASHPlugin(dry_run=True)")

    def learn_from(self, trial: DASHPlugin) -> None:
        """Keep how much data it took."""
        self._cost = trial._cost

    def change(self, model: nn.Module, generator: torch.Generator) -> Sequence[Entry]:
        """Shrink once."""
        with torch.enable_grad(), _untouched(model, self._strategy.device, generator):
            direction = descent_direction(model, self._losses(model), self.rule.smoothing)
        if direction and not bool(all_finite(direction.values())):
            raise NonFiniteError("the gradients of the experience that begins are NaN or infinite")
        return shrink_by_direction(model, direction, self.rule.threshold, self.excluded.tensors(model))

    def _losses(self, model: nn.Module) -> Iterator[Tensor]:
        strategy = self._strategy
        data = strategy.adapted_dataset.eval()
        whole = strategy.train_mb_size * process_count(group_of(model))
        size = self.batch_size or whole
        # A sample alone has no batch statistics; training may have left it out as well.
        alone = len(data) > size > 1 == len(data) % size and any(isinstance(m, nn.BatchNorm1d) for m in model.modules())
        loader = DataLoader(data, batch_size=size, collate_fn=data.collate_fn, drop_last=alone)
        self._cost = (0, 0)
        for batch in loader:
            inputs, targets, *rest = (part.to(strategy.device) for part in batch)
            tasks = (rest[-1],) if is_multi_task_module(model) else ()
            output = own_copy(model)(inputs, *tasks)
            self._cost = (self._cost[0] + len(targets), self._cost[1] + 1)
            yield strategy._criterion(output, targets)


@contextmanager
def _untouched(model: nn.Module, device: torch.device, generator: torch.Generator) -> Iterator[None]:
    """Put back buffers and random states; inside, randomness comes from a generator."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    python, numpy = random.getstate(), np.random.get_state()
    seed = int(torch.randint(2**62, (1,), generator=generator))
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                torch.cuda.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
