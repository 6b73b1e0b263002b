"""The plugin that lets a strategy compute in half precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from avalanche.models import MultiHeadClassifier
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates.base_sgd import BaseSGDTemplate
from torch import Tensor

from plasticity.errors import UserError
from plasticity.loading.epoch import takes_quick_epoch

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class MixedPrecisionPlugin(SupervisedPlugin[Any], supports_distributed=True):
    """Lets a strategy compute its outputs and its loss under `torch.autocast`, with float32 weights.

        strategy = Naive(..., plugins=[MixedPrecisionPlugin(), ...])

    The strategy's own `forward` and `criterion` are wrapped while it trains or evaluates. Whatever else runs the model,
    as treatments do on their probe, runs it as it is, in float32. So do Avalanche's `MultiHeadClassifier`s, which put
    outputs together in float32 and take no others.

    With float16 the loss is scaled by PyTorch's `GradScaler`, in `backward`: gradients have that scale in
    `after_backward`, and lose it in `before_update`. The plugin stands first in the list, then all others see in
    `before_update` the gradients that the optimizer gets. A step whose gradients overflow is left out, but its events
    are not. With a fused optimizer the host does not wait for the device; with any other PyTorch's scaler asks the
    device in every step.

    Args:
        precision: "bfloat16", which has the range of float32, or "float16".
        scale: With float16, by how much the loss is scaled at first.

    Raises:
        UserError: If the precision is unknown; when training begins, if the strategy trains in a way of its own that
            does not take it, or the device has no such precision.
    """

    def __init__(self, precision: str = "bfloat16", *, scale: float = 2.0**16) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Avalanche does not annotate it
        if precision not in PRECISIONS:
            raise UserError(f"unknown precision {precision!r}: there are {', '.join(PRECISIONS)}")
        self.precision = precision
        self.scale = scale
        self._scaler: torch.amp.GradScaler | None = None
        self._saved: dict[str, Any] = {}  # of the scaler
        self._before: list[tuple[Any, str, Any]] = []  # objects, attributes and their values in whose place ours are
        self._evaluating = False

    # --- Avalanche's callbacks ---------------------------------------------------------------------------------

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Wrap what a training step is made of."""
        self._take_back()  # where training was broken off
        name = type(strategy).__name__
        if not takes_quick_epoch(strategy):
            raise UserError(
                f"MixedPrecisionPlugin: {name} has a training epoch of its own, which may compute losses in other "
                "ways; use torch.autocast in it"
            )
        self._wrap(strategy)
        if self.precision == "float16":
            if type(strategy).optimizer_step is not BaseSGDTemplate.optimizer_step:
                raise UserError(
                    f"MixedPrecisionPlugin: {name} has an optimizer_step of its own, which would not know of "
                    "overflows; take bfloat16"
                )
            self._scaler = self._scaler or self._new_scaler(torch.device(strategy.device))
            self._put(strategy, "backward", partial(self._backward, strategy, strategy.backward))
            self._put(strategy, "optimizer_step", partial(self._step, strategy))

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take the scale out of the gradients."""
        if self._scaler is not None:
            self._scaler.unscale_(strategy.optimizer)

    def after_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Give the strategy its own methods back."""
        self._take_back()

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Wrap what an evaluation is made of, unless it comes in the middle of training."""
        if not self._before:
            self._evaluating = True
            self._wrap(strategy)

    def after_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Give the strategy its own methods back."""
        if self._evaluating:
            self._take_back()

    # --- what takes the place of a strategy's methods ----------------------------------------------------------

    def _wrap(self, strategy: Any) -> None:
        kind = torch.device(strategy.device).type
        if not torch.amp.is_autocast_available(kind):
            raise UserError(f"MixedPrecisionPlugin: PyTorch has no autocast for the device {kind!r}")
        for name in ("forward", "criterion"):
            self._put(strategy, name, partial(self._cast, kind, getattr(strategy, name)))
        for module in strategy.model.modules():
            if isinstance(module, MultiHeadClassifier):
                self._put(module, "forward", partial(_in_float32, kind, module.forward))

    def _cast(self, kind: str, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(kind, PRECISIONS[self.precision]):
            return compute(*args, **kwargs)

    def _backward(self, strategy: Any, backward: Callable[[], None]) -> None:
        assert self._scaler is not None
        loss = strategy.loss
        strategy.loss = self._scaler.scale(loss)
        try:
            backward()
        finally:
            strategy.loss = loss

    def _step(self, strategy: Any) -> None:
        assert self._scaler is not None
        self._scaler.step(strategy.optimizer)
        self._scaler.update()

    def _new_scaler(self, device: torch.device) -> torch.amp.GradScaler:
        scaler = torch.amp.GradScaler(device.type, init_scale=self.scale)
        if self._saved:
            scaler.load_state_dict(self._saved)
        return scaler

    def _put(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        self._before.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, method)

    def _take_back(self) -> None:
        for owner, name, method in reversed(self._before):
            if method is None:
                vars(owner).pop(name, None)
            else:
                setattr(owner, name, method)
        self._before, self._evaluating = [], False

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the scale of the loss, and since when it is that."""
        return dict(self._saved if self._scaler is None else self._scaler.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._saved = dict(state)
        if self._scaler is not None and self._saved:
            self._scaler.load_state_dict(self._saved)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_saved": self.state_dict(), "_scaler": None, "_before": [], "_evaluating": False}


def _in_float32(kind: str, forward: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast(kind, enabled=False):
        return forward(x.float(), *args, **kwargs)
