"""How much of the loss of a mini-batch its own step takes away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.groups import unwrap
from plasticity.measures import sample_plasticity


class StepWatch:
    """Compares the loss of each mini-batch just before and just after the step that it is used for.

    The pass after the step is as the one before it: in the same mode, with the same random numbers for dropout; running
    statistics are put back. Nothing is asked of the device.
    """

    def __init__(self) -> None:
        self._random: tuple[torch.device, Tensor, Tensor | None] | None = None
        self._before: Tensor | None = None

    def begin(self, strategy: Any) -> None:
        """Keep the random state of the forward pass that follows."""
        device = torch.device(strategy.device)
        state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._random = device, torch.get_rng_state(), state

    @torch.no_grad()
    def note(self, strategy: Any) -> None:
        """Keep the loss of the forward pass, without what plugins add to it."""
        self._before = _loss(strategy, strategy.mb_output)

    @torch.no_grad()
    def take(self, strategy: Any) -> Tensor | None:
        """Return the sample plasticity of the step that was taken, 0-dim; None if its forward pass was not seen."""
        if self._before is None or self._random is None:
            return None
        before, self._before = self._before, None
        with _as_before(unwrap(strategy.model), *self._random):
            after = _loss(strategy, strategy.forward())
        return sample_plasticity(before, after).mean()

    def __getstate__(self) -> dict[str, Any]:
        return {"_random": None, "_before": None}


def _loss(strategy: Any, output: Any) -> Tensor:
    """Return the loss, of outputs in half precision, too: a step takes away less than those would tell apart."""
    if isinstance(output, Tensor) and output.dtype in (torch.float16, torch.bfloat16):
        output = output.float()
    loss: Tensor = strategy._criterion(output, strategy.mb_y)
    return loss


@contextmanager
def _as_before(model: nn.Module, device: torch.device, state: Tensor, on_device: Tensor | None) -> Iterator[None]:
    """Draw the random numbers of before, and put random states and buffers back."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[device] if on_device is not None else []):
            torch.set_rng_state(state)
            if on_device is not None:
                torch.cuda.set_rng_state(on_device, device)
            yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
