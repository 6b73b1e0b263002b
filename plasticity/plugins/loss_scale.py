"""By how much a strategy's loss is scaled before its backward pass: for mixed precision, or to accumulate gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState

from plasticity.errors import UserError


class LossScale:
    """Tells the scale of one backward pass at a time.

    A 0 that is added to the loss has the scale for its gradient. Nothing is asked of the device, and a loss that is not
    scaled stays what it is, bit for bit.
    """

    def __init__(self) -> None:
        self._zero: Tensor | None = None

    def ask(self, strategy: Any) -> None:
        """Make ready, before the backward pass."""
        self._zero = torch.zeros((), device=strategy.loss.device, requires_grad=True)
        strategy.loss = strategy.loss + self._zero

    def take(self, strategy: Any, asker: object) -> Tensor | None:
        """Return the scale after the backward pass, 0-dim on the device; None if none was asked for.

        Args:
            strategy: The strategy.
            asker: The plugin, for messages.

        Raises:
            UserError: If another loss has taken the place of that one, or gradients are not scaled any more.
        """
        if self._zero is None:
            return None
        scale, self._zero = self._zero.grad, None
        name = type(asker).__name__
        if scale is None:
            raise UserError(
                f"{name}: another plugin has replaced the strategy's loss instead of adding to it; put {name} behind it"
            )
        if any(isinstance(each, GradScaler) and _unscaled(each, strategy) for each in vars(strategy).values()):
            raise UserError(
                f"{name} works on scaled gradients right after the backward pass: call scaler.unscale_() later, in "
                "the strategy's optimizer_step()"
            )
        return scale

    def __getstate__(self) -> dict[str, Any]:
        return {"_zero": None}


def refuse_scaled_gradients(strategy: Any) -> None:
    """Refuse a strategy whose gradients are still scaled as an update comes: a norm of them would be no norm.

    Args:
        strategy: The strategy; a gradient scaler is one of its attributes.

    Raises:
        UserError: If it is so.
    """
    for each in vars(strategy).values():
        used = isinstance(each, GradScaler) and getattr(each, "_scale", None) is not None
        if used and not _unscaled(each, strategy):
            raise UserError(
                "GradientNorm would be that of scaled gradients: call scaler.unscale_() in a plugin's before_update(), "
                "as plasticity.loading.MixedPrecisionPlugin does"
            )


def _unscaled(scaler: GradScaler, strategy: Any) -> bool:
    """Tell whether a scaler has divided the gradients by its scale already."""
    states = getattr(scaler, "_per_optimizer_states", {})
    optimizer = id(strategy.optimizer)
    return optimizer in states and states[optimizer]["stage"] is not OptState.READY
