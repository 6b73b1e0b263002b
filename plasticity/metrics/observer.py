"""Watches the strategy's own forward passes, and nothing else."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from plasticity.activity import Activity
from plasticity.groups import UnitGroups, unwrap
from plasticity.metrics.tally import Tally
from plasticity.plugins.base import model_inputs
from plasticity.probe import Probe
from plasticity.units import find_units


class Observer:
    """Watches one forward pass at a time, over a narrow and a wide stretch: a mini-batch and its epoch, for example.

    Hooks are on the model only between `begin` and the end of the next forward pass, so that further passes of the
    same model, and copies of it, are as if nobody watched. Units are found before the first pass, and again when the
    model is another object or is built differently.

    Args:
        features: How many rows of the penultimate representation a stretch keeps, at most.
        wide: Whether wide stretches are asked for.
        shared: A wide stretch keeps equally many of each narrow one, instead of those that came first.
        groups: The hidden units, if they are declared by hand.

    Attributes:
        wide: What the wide stretch saw in its closed narrow ones.
    """

    def __init__(self, features: int, *, wide: bool, shared: bool = False, groups: UnitGroups | None = None) -> None:
        self._groups = groups
        self._features, self._adds_up, self._shared = features, wide, shared
        self._activity: Activity | None = None
        self._structure: Any = None
        self._hooks = ExitStack()
        self.restart()

    def restart(self) -> None:
        """Begin a wide stretch, and with it a narrow one; forget what was seen."""
        self.end()
        self.wide = Tally(self._features, shared=self._shared)
        self._narrow = Tally(self._features)
        if self._activity is not None:
            self._activity.reset()

    def close(self) -> Tally:
        """End the narrow stretch and begin the next; return what it saw."""
        self._collect()
        narrow, self._narrow = self._narrow, Tally(self._features)
        if self._adds_up:
            self.wide.add(narrow.statistics, narrow.features())
        return narrow

    def begin(self, strategy: Any) -> None:
        """Watch the next forward pass of the strategy's model.

        Args:
            strategy: The strategy, about to run its model on the present mini-batch.

        Raises:
            TraceError: If the units of the model cannot be found.
        """
        self.end()  # a pass that was interrupted may have left its hooks
        model = unwrap(strategy.model)
        structure = _structure(model)
        if self._activity is None or self._activity.model is not model or self._structure != structure:
            self._collect()
            units = self._groups or find_units(model, Probe([model_inputs(strategy)]).example())
            self._activity, self._structure = Activity(model, units, features=self._features), structure
        self._hooks.callback(self._activity.detach)
        self._activity.attach()
        self._hooks.callback(model.register_forward_hook(self._over).remove)

    def end(self) -> None:
        """Take every hook off the model."""
        self._hooks.close()

    def _over(self, module: nn.Module, args: Any, output: Any) -> None:
        self.end()

    def _collect(self) -> None:
        if self._activity is not None:
            self._narrow.add(self._activity.statistics(), self._activity.features())
            self._activity.reset()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_activity": None, "_structure": None, "_hooks": ExitStack()}


def _structure(model: nn.Module) -> Any:
    """Describe how a model is built and in which mode it is; cheap enough to be compared before every forward pass."""
    return model.training, [
        (type(module), *module._modules.keys(), *(_shape(each) for each in module._parameters.values()))
        for module in model.modules()
    ]


def _shape(parameter: nn.Parameter | None) -> Any:
    return None if parameter is None or is_lazy(parameter) else parameter.shape
