"""The plugin that lets a strategy train quickly."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin

from plasticity.loading.epoch import takes_quick_epoch, use_own_epoch, use_quick_epoch
from plasticity.loading.loader import ROOM, TensorLoader
from plasticity.loading.rows import NotTensorsError


class TensorLoaderPlugin(SupervisedPlugin[Any], supports_distributed=True):
    """Lets a strategy train quickly: its data are kept as tensors on its device, and callbacks that are empty left out.

        strategy = Naive(..., plugins=[TensorLoaderPlugin()])

    Avalanche fetches every sample through Python, which for small networks takes longer than training them. With this
    plugin, wherever it stands among the others, its loaders are left to say *which* samples come in each mini-batch,
    also under replay or with balanced tasks, and the samples are indexed out of tensors, a mini-batch at a time.
    Mini-batches, random numbers and the trained network stay what they are without it, bit for bit, unless
    transformations draw random numbers. Those of torchvision's that `dataset_rows` names are done to a mini-batch at a
    time on the device, with the same distribution.

    Where data do not fit (other transformations, a collate function or a class of the user's), Avalanche's loader is
    kept, and where a strategy has a training epoch of its own, that is kept; a warning says so once.

    Args:
        device: Where to keep the data of an experience; None: the strategy's device.
        room: Bytes that the inputs of an experience may take. Where float inputs would take more, stored images are
            kept as bytes, and become inputs a mini-batch at a time.
    """

    def __init__(self, device: torch.device | str | None = None, room: float = ROOM) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Avalanche does not annotate it
        self.device = device
        self.room = room
        self._left: Any = None  # the loader left in place in this experience
        self._said: set[str] = set()

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Replace loader and epoch, once every plugin has had the chance to set its own loader."""
        if takes_quick_epoch(strategy):
            use_quick_epoch(strategy)
        else:
            self._say("epoch", f"keeps the training epoch of {type(strategy).__name__}, which is its own")
        loader = strategy.dataloader
        if isinstance(loader, TensorLoader) or loader is self._left:
            return
        try:
            strategy.dataloader = TensorLoader(loader, self.device or strategy.device, self.room)
        except NotTensorsError as reason:
            self._left = loader
            self._say("loader", f"leaves Avalanche's loader in place: {reason}")

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Give the strategy its own epoch back."""
        use_own_epoch(strategy)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Forget the loader, so that checkpoints hold none."""
        use_own_epoch(strategy)
        self._left = None

    def _say(self, kind: str, what: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            warnings.warn(f"TensorLoaderPlugin {what}", stacklevel=3)
