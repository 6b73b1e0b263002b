"""Look at the calls of a model's modules during a pass; outside of passes the modules are as if nobody did.

PyTorch calls a module that has hooks in a slower way, which shows where a step takes a millisecond or two. So what
looks at calls stands where the compiled form of a module stands (`nn.Module.compile`), but only while a pass runs. What
it hands over is what a hook would see, after all hooks that the module has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from plasticity.errors import UserError
from plasticity.tracing.unwatched import unwatching

Before = Callable[[tuple[Any, ...], dict[str, Any]], None]
After = Callable[[Any], None]
Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_PLACE = "_compiled_call_impl"
"""Of what PyTorch calls instead of a module's own call, if it is not None; it stays behind in copies of the module."""

_WITH_SHORT_CUT = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
"""They leave out the calls of what they are made of in evaluation, unless one of these has hooks."""


class Calls:
    """Those who look at the calls of a model's modules, in passes of the model itself.

    Args:
        model: The network.
        entered: Called when a pass begins; returns whether to look at it.
        left: Called when one ends, or fails.

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
        self._entered, self._left = entered, left
        self._model, self._own = _Call(model), _Call(model)  # the latter looks at what the former lets pass
        self._model.around = self._passing
        self._calls = {model: self._own}
        self._inner: list[_Call] = []
        self._short_cuts = any(isinstance(module, _WITH_SHORT_CUT) for module in model.modules())

    def before(self, module: nn.Module, look: Before) -> None:
        """Plan to call `look(args, kwargs)` before each call of a module."""
        self._of(module).before += (look,)

    def after(self, module: nn.Module, look: After) -> None:
        """Plan to call `look(output)` after each call of a module."""
        self._of(module).after += (look,)

    def around(self, module: nn.Module, around: Around) -> None:
        """Plan to do something around each call of a module, other than the model: `around(call, args, kwargs)`."""
        self._of(module).around = around

    def wait(self) -> None:
        """Look at the passes that come."""
        if not self.waiting:
            self.waiting = True
            self._model.stand()

    def rest(self) -> None:
        """Wait no longer; end the present pass."""
        self.end()
        if self.waiting:
            self.waiting = False
            self._model.make_way()

    def end(self) -> None:
        """Look no longer at the present pass, if there is one."""
        if self._looking:
            self._looking = False
            for call in self._inner:
                call.make_way()
            if self._short_cuts:
                torch.backends.mha.set_fastpath_enabled(self._short_cuts_were)

    def _passing(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._entered():
            return call(*args, **kwargs)
        self._begin()
        try:
            own = self._own
            return own.look(call, args, kwargs) if own.before or own.after else call(*args, **kwargs)
        finally:
            self._left()

    def _begin(self) -> None:
        if self._looking:
            self.end()  # the pass around this one
        self._looking = True
        for call in self._inner:
            call.stand()
        if self._short_cuts:
            self._short_cuts_were = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)

    def _of(self, module: nn.Module) -> _Call:
        if module not in self._calls:
            self._calls[module] = _Call(module)
            self._inner.append(self._calls[module])
        return self._calls[module]


class _Call:
    """Stands in for the call of a module, perhaps for another one that does.

    Args:
        module: The module.

    Attributes:
        before: Called with all arguments before each call.
        after: Called with what each call returns.
        around: Makes the call.
        attributes: The module's own.
        previous: What stands behind it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.before: tuple[Before, ...] = ()
        self.after: tuple[After, ...] = ()
        self.around: Around | None = None
        self.attributes = vars(module)
        self.previous: Callable[..., Any] | None = None
        self._plain: Callable[..., Any] = module._call_impl
        self._call: Callable[..., Any] = self._plain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, and show what it takes and returns, unless nobody is to look."""
        call = self._call
        if unwatching.get():
            return call(*args, **kwargs)
        if self.around is not None or self.before:
            return self.look(call, args, kwargs)
        output = call(*args, **kwargs)  # as `look`, for most
        for after in self.after:
            after(output)
        return output

    def look(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module, and show what it takes and returns."""
        for before in self.before:
            before(args, kwargs)
        output = call(*args, **kwargs) if self.around is None else self.around(call, args, kwargs)
        for after in self.after:
            after(output)
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
        while isinstance(first, _Call):  # others came later
            if first.previous is self:
                first._stand_before(previous)
            first = first.previous

    def _stand_before(self, previous: Callable[..., Any] | None) -> None:
        self.previous = previous
        self._call = self._plain if previous is None else previous

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nobody, ()


def _nobody() -> None:
    """What looks at the calls of a copied module."""


@cache
def _place_is_known() -> bool:
    module = nn.Identity()
    vars(module)[_PLACE] = lambda given: ("seen", given)
    return bool(module(1) == ("seen", 1))
