"""A bare PyTorch loop over tensors: what every way of training is compared with."""

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
        self._scaler = torch.amp.GradScaler(device.type) if computing.precision == "float16" else None
        self._device = device

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a mini-batch."""
        if self._half is None:
            return F.cross_entropy(self.model(inputs), labels)
        with torch.autocast(self._device.type, self._half):
            return F.cross_entropy(self.model(inputs), labels)

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """Train on a mini-batch."""
        self.optimizer.zero_grad()
        loss = self.loss(inputs, labels)
        if self._scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            self._scaler.scale(loss).backward()
            self._scaler.step(self.optimizer)
            self._scaler.update()
