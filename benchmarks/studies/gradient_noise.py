"""Gradient noise as a strategy: what it does to units is one of the questions of the study `dying-units`."""

from typing import TYPE_CHECKING, Any

import torch
from avalanche.training.plugins import SupervisedPlugin

from plasticity.errors import UserError
from strategies import Context, register

if TYPE_CHECKING:
    from torch.optim import Optimizer


class GradientNoisePlugin(SupervisedPlugin[Any]):
    """Adds normal noise to every gradient, before the optimizer sees it.

    The gradient that mini-batches give is noisy, too, but not for a unit that is never active: its gradient is exactly
    0, and nothing brings it back. With `live_only` the noise added here is of this kind.

    Args:
        std: Standard deviation, in the unit of the gradient, at least 0.
        live_only: Whether entries whose gradient is exactly 0 get none.
        seed: Of the noise.

    Raises:
        UserError: If `std` has no meaning.
    """

    def __init__(self, std: float = 0.01, *, live_only: bool = False, seed: int = 0):
        super().__init__()
        if not 0 <= std < float("inf"):
            raise UserError(f"std must be at least 0, not {std}")
        self.std = std
        self.live_only = live_only
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the noise."""
        if self.std > 0:
            add_noise(strategy.optimizer, self.std, self.live_only, self._draw_from)

    def _draw_from(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def add_noise(optimizer: "Optimizer", std: float, live_only: bool, draw_from: Any) -> None:
    """Add noise to the gradients of an optimizer's parameters.

    Args:
        optimizer: Whose parameters.
        std: Standard deviation.
        live_only: Whether entries whose gradient is exactly 0 get none.
        draw_from: Returns the random generator of a device.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            noise = torch.empty_like(gradient).normal_(0, std, generator=draw_from(gradient.device))
            gradient.add_(noise * (gradient != 0) if live_only else noise)


def _gradient_noise(context: Context, *, std: float = 0.01, live_only: bool = False) -> list[SupervisedPlugin[Any]]:
    return [GradientNoisePlugin(std, live_only=live_only, seed=context.seed)]


register("gradient-noise", _gradient_noise, "normal noise on every gradient")
