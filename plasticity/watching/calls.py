"""Look at the calls of a model's modules during a pass; outside of passes the modules are as if nobody did.

PyTorch calls a module that has hooks in a slower way, which shows where a step takes a millisecond or two. So what
looks at calls stands where the compiled form of a module stands (`nn.Module.compile`), but only while a pass runs. What
it hands over is what a hook would see, after all hooks that the module has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plasticity.errors import UserError
from plasticity.tracing.unwatched import unwatching

Before = Callable[[tuple[Any, ...], dict[str, Any]], None]
Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class Looker(Protocol):
    """Whoever looks at activations."""

    @property
    def add(self) -> Callable[[Tensor], None]:
        """What takes the activations of a call; asked for at every call, as it may become another one."""


@dataclass
class Look:
    """Looks at activations in one and the same way.

    Attributes:
        add: Takes the activations of a call.
    """

    add: Callable[[Tensor], None]


EVERY = -1
"""Every call of a module in a pass, where a number says which."""

_PLACE = "_compiled_call_impl"
"""Of what PyTorch calls instead of a module's own call, if it is not None; it stays behind in copies of the module."""

_WITH_SHORT_CUT = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
"""They leave out the calls of what they are made of in evaluation, unless one of these has hooks."""


class Calls:
    """Those who look at the calls of a model's modules, in passes of the model itself.

    Args:
        model: The network.
        entered: Called when a pass begins; returns whether to look at it.
        left: Called when one that is looked at ends, or fails.

    Attributes:
        waiting: Whether passes are waited for.

    Raises:
        UserError: If PyTorch calls modules in a way that is not known.
    """

    def __init__(self, model: nn.Module, entered: Callable[[], bool], left: Callable[[], None]) -> None:
        if not _place_is_known():
            version = torch.__version__
            raise UserError(f"PyTorch {version} calls modules in a way that is not known here: units cannot be watched")
        self.waiting = self._looking = False
        self.entered, self.left = entered, left
        self._modules = dict(model.named_modules())
        self._short_cuts = any(isinstance(module, _WITH_SHORT_CUT) for module in model.modules())
        self._model = _ModelCall(model, self)
        self._calls: dict[str, Call] = {"": self._model}
        self._inner: list[Call] = []

    def before(self, name: str, look: Before) -> None:
        """Plan to call `look(args, kwargs)` before each call of a module, by its qualified name."""
        self._of(name).before += (look,)

    def output(self, name: str, call: int, looker: Looker) -> None:
        """Plan to show what a module returns, in one of its calls in a pass, or in `EVERY` one."""
        of = self._of(name)
        if call == EVERY:
            of.always += (looker,)
            of.lookers = {number: (*lookers, looker) for number, lookers in of.lookers.items()}
        else:
            of.lookers[call] = (*of.lookers.get(call, of.always), looker)

    def around(self, name: str, around: Around) -> None:
        """Plan to do something around each call of a module, other than the model: `around(call, args, kwargs)`."""
        self._of(name).around = around

    def wait(self) -> None:
        """Look at the passes that come."""
        if not self.waiting:
            self.waiting = True
            self._model.stand()

    def rest(self) -> None:
        """Wait no longer; end the present pass."""
        if self._looking:
            self.end()
        if self.waiting:
            self.waiting = False
            self._model.make_way()

    def begin(self) -> None:
        """Look at a pass that begins."""
        if self._looking:
            self.end()  # the pass around this one
        self._looking = True
        for call in self._inner:
            call.number = 0
            if _PLACE in call.attributes:
                call.stand()
            else:
                call.attributes[_PLACE] = call  # as that, for most
        self._model.number = 0
        if self._short_cuts:
            self._short_cuts_were = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)

    def end(self) -> None:
        """Look no longer at the present pass, if there is one."""
        if self._looking:
            self._looking = False
            for call in self._inner:
                if call.previous is None and call.attributes.get(_PLACE) is call:
                    del call.attributes[_PLACE]  # as `make_way`, for most
                else:
                    call.make_way()
            if self._short_cuts:
                torch.backends.mha.set_fastpath_enabled(self._short_cuts_were)

    def _of(self, name: str) -> Call:
        if name not in self._calls:
            self._calls[name] = Call(self._modules[name], name)
            self._inner.append(self._calls[name])
        return self._calls[name]


class Call:
    """Stands in for the call of a module, perhaps for another one that does.

    Args:
        module: The module.
        name: Its qualified name.

    Attributes:
        before: Called with all arguments before each call.
        lookers: Who looks at what a call returns, by its number.
        always: Who looks at that of all other calls.
        around: Makes the call.
        number: How many calls there were in this pass.
        attributes: The module's own.
        previous: What stands behind it.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.before: tuple[Before, ...] = ()
        self.lookers: dict[int, tuple[Looker, ...]] = {}
        self.always: tuple[Looker, ...] = ()
        self.around: Around | None = None
        self.number = 0
        self.attributes = vars(module)
        self.previous: Callable[..., Any] | None = None
        self._name = name
        self._plain: Callable[..., Any] = module._call_impl
        self._call: Callable[..., Any] = self._plain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, and show what it takes and returns, unless nobody is to look."""
        call = self._call
        if unwatching.get():
            return call(*args, **kwargs)
        for before in self.before:
            before(args, kwargs)
        output = call(*args, **kwargs) if self.around is None else self.around(call, args, kwargs)
        number = self.number
        self.number = number + 1
        for looker in self.lookers.get(number, self.always):
            if not isinstance(output, Tensor):
                kind = type(output).__name__
                raise UserError(f"'{self._name}' returns a {kind}, no tensor: its units cannot be watched")
            looker.add(output)
        return output

    def stand(self) -> None:
        """Stand in the place, before whatever stands there."""
        if _PLACE in self.attributes:
            self._stand_before(self.attributes[_PLACE])
        self.attributes[_PLACE] = self

    def make_way(self) -> None:
        """Leave the place to what was there before."""
        previous, first = self.previous, self.attributes.get(_PLACE)
        if first is self and previous is None:
            del self.attributes[_PLACE]
            return
        self._stand_before(None)
        if first is self:
            self.attributes[_PLACE] = previous
        while isinstance(first, Call):  # others came later
            if first.previous is self:
                first._stand_before(previous)
            first = first.previous

    def _stand_before(self, previous: Callable[..., Any] | None) -> None:
        self.previous = previous
        self._call = self._plain if previous is None else previous

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nobody, ()


class _ModelCall(Call):
    """Stands in for the call of a model, which is a pass.

    Args:
        model: The network.
        calls: Those who look at its modules.
    """

    def __init__(self, model: nn.Module, calls: Calls) -> None:
        super().__init__(model, "")
        self._calls = calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a pass, and have it looked at if it is to be."""
        calls = self._calls
        if unwatching.get() or not calls.entered():
            return self._call(*args, **kwargs)
        calls.begin()
        try:
            if self.before or self.lookers or self.always:
                return super().__call__(*args, **kwargs)
            return self._call(*args, **kwargs)
        finally:
            calls.left()


def behind(model: nn.Module) -> Any:
    """Return what is called instead of a model's own call where nobody looks at it, or None."""
    function = vars(model).get(_PLACE)
    while isinstance(function, Call):
        function = function.previous
    return function


def _nobody() -> None:
    """What looks at the calls of a copied module."""


@cache
def _place_is_known() -> bool:
    module = nn.Identity()
    vars(module)[_PLACE] = lambda given: ("seen", given)
    return bool(module(1) == ("seen", 1))
