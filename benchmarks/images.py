"""Images kept as they are stored, which become a network's inputs only when they are read."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.data import as_inputs
from plasticity.loading import Rows, Step


class Pixels(Protocol):
    """Stored images: a tensor, or what gives one when it is asked for rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels of one experience. Many may share the same stored images.

    Every image becomes an input by itself, so that any selection of them has the same values, bit for bit.

    Args:
        dataset: The data set that the images come from, a name in `benchmarks.data`.
        pixels: Stored images, uint8, (stored, ...).
        labels: int64, (samples,).
        rows: Which stored images, in which order, (samples,); None: all of them.
        order: Which value of an image comes first, which second, …, (values of an image,); inputs are then flat. None:
            images keep their shape.
    """

    def __init__(
        self, dataset: str, pixels: Pixels, labels: Tensor, rows: Tensor | None = None, order: Tensor | None = None
    ):
        self.dataset = dataset
        self.pixels = pixels
        self.labels = labels
        self.rows = rows
        self.order = order
        self._steps: tuple[Step, ...] = (_Inputs(dataset),) if order is None else (_Inputs(dataset), _Reordered(order))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, labels = self.select(torch.tensor([index]))
        return inputs[0], labels[0]

    def tensor_rows(self, index: Tensor | None = None) -> Rows:
        """Return some samples as they are stored, and what makes inputs of them.

        Args:
            index: Numbers of the samples, int64; None: all.
        """
        rows = self.rows if index is None else index if self.rows is None else self.rows[index]
        pixels = self.pixels[torch.arange(len(self)) if rows is None else rows]
        return Rows((pixels, self.labels if index is None else self.labels[index]), self._steps)

    def select(self, index: Tensor | None = None) -> list[Tensor]:
        """Return the inputs and the labels of some samples.

        Args:
            index: Numbers of the samples, int64; None: all.

        Returns:
            Inputs, float32, and labels, int64, a row each for every number.
        """
        return self.tensor_rows(index).samples()


@dataclass(frozen=True)
class _Inputs:
    """Stored images become inputs."""

    dataset: str
    random: ClassVar[bool] = False

    def __call__(self, pixels: Tensor, /) -> Tensor:
        return as_inputs(self.dataset, pixels)


@dataclass(frozen=True, eq=False)
class _Reordered:
    """The values of each input in another order, flat."""

    order: Tensor
    random: ClassVar[bool] = False

    def __call__(self, inputs: Tensor, /) -> Tensor:
        return inputs.flatten(1)[:, self.order.to(inputs.device, non_blocking=True)]
