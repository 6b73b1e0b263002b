"""Watch the strategy's own forward passes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy

from plasticity.activity import Activity
from plasticity.groups import UnitGroups, unwrap
from plasticity.plugins.base import model_inputs
from plasticity.probe import Probe
from plasticity.tracing.hooks import WatchingHook
from plasticity.units import find_units

Watching = TypeVar("Watching", bound=Activity)


class ForwardObserver(Generic[Watching]):
    """Watches one forward pass at a time.

    Hooks are on the model only between `begin` and the end of the next forward pass, so that further passes of the
    same model, copies of it, and the search for units by another observer are as if nobody watched. Units are found
    before the first pass, and again when the model is another object or is built differently.

    Args:
        make: Makes what watches, from a model and its groups; to be pickled with the observer.
        groups: The hidden units, if they are declared by hand.

    Attributes:
        activity: What watches, once there was something to watch.
    """

    def __init__(self, make: Callable[[nn.Module, UnitGroups], Watching], groups: UnitGroups | None = None) -> None:
        self._make, self._groups = make, groups
        self.activity: Watching | None = None
        self._structure: Any = None
        self._hooks = ExitStack()

    def begin(self, strategy: Any) -> None:
        """Watch the next forward pass of the strategy's model.

        Args:
            strategy: The strategy, about to run its model on the present mini-batch.

        Raises:
            TraceError: If the units of the model cannot be found.
        """
        self.end()  # a pass that was interrupted may have left its hooks
        model = unwrap(strategy.model)
        structure = structure_of(model)
        if self.activity is None or self.activity.model is not model or self._structure != structure:
            self.before_renewal()
            units = self._groups or find_units(model, Probe([model_inputs(strategy)]).example())
            self.activity, self._structure = self._make(model, units), structure
        self._hooks.callback(self.activity.detach)
        self.activity.attach()
        self._hooks.callback(model.register_forward_hook(WatchingHook(self._over)).remove)

    def before_renewal(self) -> None:
        """Save what the present `activity` saw, before another one takes its place; for subclasses."""

    def end(self) -> None:
        """Take every hook off the model."""
        self._hooks.close()

    def _over(self, module: nn.Module, args: Any, output: Any) -> None:
        self.end()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "activity": None, "_structure": None, "_hooks": ExitStack()}


def structure_of(model: nn.Module) -> Any:
    """Describe how a model is built and in which mode it is; cheap enough to be compared before every forward pass."""
    return model.training, [
        (type(module), *module._modules.keys(), *(_shape(each) for each in module._parameters.values()))
        for module in model.modules()
    ]


def _shape(parameter: nn.Parameter | None) -> Any:
    return None if parameter is None or is_lazy(parameter) else parameter.shape
