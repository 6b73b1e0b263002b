"""Look at a network on the same samples every time."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from torch.utils.data import default_collate

from plasticity.errors import UserError
from plasticity.groups import UnitGroups, unwrap
from plasticity.metrics.tally import Tally
from plasticity.plugins.observing import structure_of
from plasticity.probe import Probe, balanced
from plasticity.units import find_units

BATCH = 512


class FixedProbe:
    """Samples on which a network is looked at in eval mode; what is seen depends on the network alone.

    Args:
        samples: A data set of (input, label, ...) samples, or an experience that has one: of an Avalanche data set the
            `eval` transformations are used, and the task labels where the model asks for them. Or a tensor of inputs,
            (samples, ...). Or a `plasticity.probe.Probe` with the model's positional inputs, which is taken whole.
        size: How many samples to take, at most: drawn once, with a fixed seed.
        balanced: Take as equally many of each class as there are; a data set only, whose labels are whole numbers.
        features: How many rows of the penultimate representation to keep, at most.
        groups: The hidden units, if they are declared by hand.

    Raises:
        UserError: If there are no samples or no labels to balance, or `size` is below 1.
    """

    def __init__(
        self,
        samples: Any,
        size: int = 2048,
        *,
        balanced: bool = False,
        features: int = 0,
        groups: UnitGroups | None = None,
    ) -> None:
        if size < 1:
            raise UserError(f"probe_samples must be at least 1, not {size}")
        if balanced and isinstance(samples, Probe | Tensor):
            raise UserError("balanced=True needs labels: give a data set as the probe")
        self._positional = samples if isinstance(samples, Probe) else None
        self._inputs = torch.empty(0)
        self._tasks: Tensor | None = None
        if isinstance(samples, Tensor):
            self._inputs = samples[_order(len(samples))[:size].to(samples.device)]
        elif self._positional is None:
            self._inputs, self._tasks = _read(getattr(samples, "dataset", samples), size, balanced)
        if len(self._inputs) + (0 if self._positional is None else self._positional.samples) == 0:
            raise UserError("the probe has no samples")
        self._features, self._groups = features, groups
        self._units: UnitGroups | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._structure: Any = None
        self._placed: tuple[torch.device, bool, Probe] | None = None

    def look(self, strategy: Any) -> Tally:
        """Run the strategy's model over the samples and return what its units did.

        Raises:
            UserError: If the model needs task labels that the samples do not have, or cannot be run on them.
        """
        model = unwrap(strategy.model)
        probe = self._on(strategy.device, is_multi_task_module(strategy.model))
        units = self._found(model, probe)
        activity, _ = probe.watch(model, units, features=self._features)
        tally = Tally(self._features)
        tally.add(activity.statistics(), activity.features() if self._features else None)
        return tally

    def _found(self, model: nn.Module, probe: Probe) -> UnitGroups:
        structure = structure_of(model)
        if self._units is None or self._model is None or self._model() is not model or structure != self._structure:
            try:
                probe.outputs(model)
            except Exception as error:
                reason = next(iter(str(error).strip().splitlines()), "")
                told = f"{type(error).__name__}: {reason}"
                raise UserError(f"{type(model).__name__} cannot be run on the probe ({told})") from error
            self._units = self._groups or find_units(model, probe.example())
            self._model, self._structure = weakref.ref(model), structure
        return self._units

    def _on(self, device: torch.device, tasks: bool) -> Probe:
        if self._placed is None or self._placed[:2] != (device, tasks):
            if self._positional is not None:
                batches: Sequence[tuple[Any, ...]] = self._positional.batches
            elif not tasks:
                batches = [(part,) for part in self._inputs.split(BATCH)]
            elif self._tasks is not None:
                batches = list(zip(self._inputs.split(BATCH), self._tasks.split(BATCH), strict=True))
            else:
                raise UserError("the model needs task labels, and the samples of the probe have none")
            placed = [tuple(p.to(device) if isinstance(p, Tensor) else p for p in batch) for batch in batches]
            self._placed = device, tasks, Probe(placed)
        return self._placed[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_units": None, "_model": None, "_structure": None, "_placed": None}


def _read(dataset: Any, size: int, balance: bool) -> tuple[Tensor, Tensor | None]:
    """Return the inputs of some samples of a data set, and their task labels where it has any."""
    dataset = dataset.eval() if hasattr(dataset, "eval") else dataset
    try:
        count = len(dataset)
    except TypeError:
        raise UserError(f"a probe must be a data set, a tensor or a Probe, not a {type(dataset).__name__}") from None
    if count == 0:
        return torch.empty(0), None
    order = _order(count)
    if balance:
        labels = _labels(dataset)[order]
        (chosen,) = zip(*balanced(Probe([(order,)]), labels, size).batches, strict=True)
        order = torch.cat(chosen)
    samples = [dataset[row] for row in order[:size].tolist()]
    if not isinstance(samples[0], tuple | list):
        samples = [(sample,) for sample in samples]
    try:
        columns = default_collate([tuple(sample) for sample in samples])
    except (TypeError, RuntimeError) as error:
        raise UserError(f"the samples of the probe do not fit into one tensor: {str(error).splitlines()[0]}") from None
    if not isinstance(columns[0], Tensor):
        raise UserError("the inputs of the probe are no tensors")
    tasks = columns[-1] if hasattr(dataset, "targets_task_labels") else None
    return columns[0], tasks


def _labels(dataset: Any) -> Tensor:
    targets = getattr(dataset, "targets", None)
    found = [dataset[row][1] for row in range(len(dataset))] if targets is None else list(targets)
    labels = torch.as_tensor(found)
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise UserError("balanced=True needs labels that are whole numbers, one a sample")
    return labels


def _order(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
