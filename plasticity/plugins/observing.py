"""Watch the strategy's own forward passes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from operator import is_
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from plasticity.errors import UserError
from plasticity.groups import UnitGroups, unwrap
from plasticity.plugins.inputs import model_inputs
from plasticity.probe import Probe
from plasticity.units import find_units
from plasticity.watching.activity import Activity, check_every, refuse_replicas
from plasticity.watching.passes import is_plain

Made = TypeVar("Made")
Watching = TypeVar("Watching", bound=Activity)


class Follower(Generic[Made]):
    """Keeps something that is made for a model and its units, and makes it anew when the model changes.

    Units are found before the first pass, and again when the model is another object or is built differently.

    Args:
        make: Makes it, from a model and its groups; to be pickled with the follower.
        groups: The hidden units, if they are declared by hand.
    """

    def __init__(self, make: Callable[[nn.Module, UnitGroups], Made], groups: UnitGroups | None = None) -> None:
        self._make, self._groups = make, groups
        self._made: Made | None = None
        self._model: nn.Module | None = None
        self._given: nn.Module | None = None  # the same, as the strategy holds it, perhaps wrapped
        self._structure: Any = None
        self._parts: _Parts | None = None

    def follow(self, strategy: Any) -> Made:
        """Return what was made for the strategy's present model.

        Args:
            strategy: The strategy, about to run its model on the present mini-batch.

        Raises:
            UserError: If the units of the model cannot be found or watched.
        """
        if self._made is not None and strategy.model is self._given and self._parts is not None and self._parts.same():
            return self._made
        refuse_replicas(strategy.model)
        model = unwrap(strategy.model)
        self.before_following()
        structure = structure_of(model)
        if self._made is None or self._model is not model or self._structure != structure:
            self.before_renewal()
            units = self._groups or find_units(model, Probe([model_inputs(strategy)]).example())
            # As the strategy has it: it may be what `torch.compile` returned.
            self._made, self._model, self._structure = self._make(strategy.model, units), model, structure
        self._given, self._parts = strategy.model, _Parts(model)
        return self._made

    def renew(self) -> None:
        """Let what is followed next be made anew, whether or not the model has changed."""
        self.before_following()
        self.before_renewal()
        self._made = self._parts = None

    def before_following(self) -> None:
        """Let go of the modules of before, which are perhaps no longer the model's; for subclasses."""

    def before_renewal(self) -> None:
        """Save what the present thing holds, before another one takes its place; for subclasses."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None, "_model": None, "_given": None, "_structure": None, "_parts": None}


class ForwardObserver(Follower[Watching]):
    """Watches one forward pass at a time.

    That is the one that the strategy runs by its `forward`. Until then and after it nothing is left on the model, so
    that passes of it that other plugins run, copies of it, and the search for units by another observer are as if
    nobody watched.

    Args:
        make: Makes what watches, from a model and its groups; to be pickled with the observer.
        groups: The hidden units, if they are declared by hand.
        every: Watch the first of so many passes that `begin` announces, since the last `restart_count`.
    """

    def __init__(
        self, make: Callable[[nn.Module, UnitGroups], Watching], groups: UnitGroups | None = None, *, every: int = 1
    ) -> None:
        super().__init__(make, groups)
        check_every(every)
        self._every, self._announced = every, 0
        self._pass: OwnPass | None = None

    @property
    def activity(self) -> Watching | None:
        """What watches, once there was something to watch."""
        return self._made

    def begin(self, strategy: Any) -> None:
        """Watch the next forward pass of the strategy's model, if it is its turn.

        Args:
            strategy: The strategy, about to run its model on the present mini-batch.

        Raises:
            TraceError: If the units of the model cannot be found.
        """
        if (self._pass is not None and self._pass.awaited) or (self._made is not None and self._made.attached):
            self.rest()  # a pass never came
        self._announced += 1
        if (self._announced - 1) % self._every == 0:
            self._pass = OwnPass(strategy, self.follow(strategy).attach_for_one_pass)

    def rest(self) -> None:
        """Look away until the next `begin`."""
        if self._pass is not None:
            self._pass.awaited = False
        if self._made is not None and self._made.attached:
            self._made.look_away()

    def restart_count(self) -> None:
        """Let the next pass be the first of `every`."""
        self._announced = 0

    def require_pass(self, strategy: Any) -> None:
        """Make sure that the pass that was announced has been watched.

        Raises:
            UserError: If the strategy has not run its model, or in a way of its own.
        """
        if self._pass is not None and self._pass.awaited:
            raise UserError(
                f"{type(strategy).__name__} does not run its model by forward(): its units cannot be watched"
            )

    def end(self) -> None:
        """Watch no more, until the next `begin`, when the model may be another."""
        if self._pass is not None:
            self._pass.awaited = False
        if self._made is not None:
            self._made.detach()

    def before_following(self) -> None:
        """Let go of the modules, which may no longer be the model's."""
        self.end()


class OwnPass:
    """Calls something right before a strategy next runs its model by `forward`, after all that plugins do before it.

    Args:
        strategy: The strategy; it has a `forward` of its own until then.
        act: What to call, once.

    Attributes:
        awaited: Whether that is still to come; False: it is not to happen.
    """

    def __init__(self, strategy: Any, act: Callable[[], None]) -> None:
        self.awaited = True
        others = vars(strategy).get("forward")  # such as another observer's

        def forward(*args: Any, **kwargs: Any) -> Any:
            if others is None:
                del strategy.forward
            else:
                strategy.forward = others
            if self.awaited:
                self.awaited = False
                act()
            return strategy.forward(*args, **kwargs)

        strategy.forward = forward


def structure_of(model: nn.Module) -> Any:
    """Describe how a model is built and in which mode it is."""
    return model.training, [
        (type(module), *module._modules.keys(), *(_shape(each) for each in module._parameters.values()))
        for module in model.modules()
    ]


class _Parts:
    """The modules and parameters that a model consists of, to be compared before every forward pass.

    As little is compared as says all: it is in no cache by then, and to fetch it takes longer than to compare it.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._training = model, model.training
        modules = list(model.modules())
        # PyTorch's own layers do not use what else they hold:
        self._children = [each._modules for each in modules if each._modules or not is_plain(each)]
        self._children_then = [*map(dict, self._children)]  # modules are equal only to themselves
        self._owned = [each._parameters for each in modules if each._parameters or not is_plain(each)]
        self._parameters = [*chain.from_iterable(map(dict.values, self._owned))]
        given = [each for each in self._parameters if each is not None]
        self._lazy = [each for each in given if is_lazy(each)]
        # A bias is as long as the weight is wide:
        implied = {id(each.bias) for each in modules if isinstance(each, _WITH_BIAS) and is_plain(each)}
        self._shaped = [each for each in given if not is_lazy(each) and id(each) not in implied]
        self._shapes = [*map(Tensor.size, self._shaped)]

    def same(self) -> bool:
        """Whether they are the same objects still, under the same names and of the same shapes."""
        return (
            self._model.training == self._training
            and self._children == self._children_then
            and sum(map(len, self._owned)) == len(self._parameters)
            and all(map(is_, chain.from_iterable(map(dict.values, self._owned)), self._parameters))
            and [*map(Tensor.size, self._shaped)] == self._shapes
            and all(map(is_lazy, self._lazy))
        )


_WITH_BIAS = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


def _shape(parameter: nn.Parameter | None) -> Any:
    return None if parameter is None or is_lazy(parameter) else parameter.shape
