"""A bare PyTorch loop over tensors: what every way of training is compared with."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.computing import Computing


class BareSteps:
    """Takes training steps as one would write them down, in any precision.

    Args:
        model: The network, on its device.
        optimizer: Its optimizer.
        computing: In which precision; the network has its memory format already.
        device: Where.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, computing: Computing, device: torch.device
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._half = getattr(torch, computing.precision) if computing.precision != "float32" else None
        self._scaler = torch.amp.GradScaler(device.type, enabled=computing.precision == "float16")
        self._device = device

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a mini-batch."""
        with torch.autocast(self._device.type, self._half) if self._half is not None else nullcontext():
            return F.cross_entropy(self.model(inputs), labels)

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """Train on a mini-batch."""
        self.optimizer.zero_grad()
        self._scaler.scale(self.loss(inputs, labels)).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()
