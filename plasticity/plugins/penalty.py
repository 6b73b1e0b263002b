"""What the plugins share that add a penalty on weights to the loss."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from plasticity.exclusion import Exclude
from plasticity.methods.parameters import Entry
from plasticity.plugins.loss_scale import LossScale
from plasticity.plugins.steps import StepPlugin
from plasticity.values import in_range


class PenaltyPlugin(StepPlugin):
    """A plugin that adds the gradient of a penalty right after the backward pass of the loss.

    Subclasses implement `entries`, `add_gradient` and `penalty`.

    The gradient is added rather than the penalty itself, since only then is it known which parameters the loss has
    reached: the others are left alone. It comes before the gradient is clipped, masked or used. It is in the loss's own
    units even where the loss is scaled, as for mixed precision: see `plasticity.plugins.loss_scale`. Plugins that
    project gradients after the backward pass (GEM, A-GEM) see it if they come later in the list.

    Args:
        strength: Of the penalty; 0 leaves everything untouched.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.

    Raises:
        UserError: If the strength is negative; while training, if another plugin has put another loss in place, or
            gradients are not scaled any more right after the backward pass.
    """

    method = "penalty"
    acts = ("penalises",)

    def __init__(self, strength: float, *, exclude: Exclude = None, dry_run: bool = False) -> None:
        super().__init__(exclude=exclude, dry_run=dry_run)
        self.strength = in_range("strength", strength)
        self._entries: list[Entry] = []
        self._scale = LossScale()

    # --- for subclasses ----------------------------------------------------------------------------------------

    def entries(self, model: nn.Module) -> list[Entry]:
        """Return the parameters on which the penalty acts, and make ready for them."""
        raise NotImplementedError

    def add_gradient(self, entries: list[Entry], scale: Tensor) -> None:
        """Add the penalty's gradient, times a 0-dim scale, to those that the parameters hold."""
        raise NotImplementedError

    def penalty(self, entries: list[Entry]) -> Tensor:
        """Return the penalty, 0-dim."""
        raise NotImplementedError

    # --- Avalanche's callbacks ---------------------------------------------------------------------------------

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take in the parameters that are now in place."""
        if self.strength > 0:
            self._entries = self.entries(strategy.model)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Make ready to see by how much the loss is scaled."""
        if self.strength > 0 and not self.dry_run:
            self._scale.ask(strategy)

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the gradient."""
        if self.strength > 0:
            self._steps += 1
        scale = self._scale.take(strategy, self)
        if scale is not None:
            self.add_gradient(self._entries, scale)

    def acts_on(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters that are penalised, by qualified name."""
        return {entry.name: entry.parameter for entry in self.entries(model)} if self.strength > 0 else {}

    def summary(self, model: nn.Module) -> dict[str, float | None]:
        """Return the penalty as it is at the end; None for a network that has diverged."""
        penalty = float(self.penalty(self._entries))
        return {"penalty": penalty if math.isfinite(penalty) else None}

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Report, and let go of the parameters, which may be replaced."""
        super().after_training_exp(strategy, *args, **kwargs)
        self._entries = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_entries": []}
