"""Which of torchvision's data sets and transformations are understood, so that they can be replaced by tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from avalanche.benchmarks.datasets.external_datasets.mnist import TensorMNIST
from avalanche.benchmarks.utils.classification_dataset import lookup
from torch import Tensor
from torchvision import datasets, transforms

from plasticity.loading.augmentation import Cropped, Mirrored, Normalised, Scaled, border
from plasticity.loading.rows import NotTensorsError, Rows


def picture_rows(data: Any, index: Tensor | None) -> Rows | None:
    """Read a data set of torchvision's that keeps its images in one array: MNIST and the like, and CIFAR.

    Args:
        data: Any data set.
        index: Numbers of samples, int64; None: all.

    Returns:
        The samples, with the data set's own transformations; None if it is no such data set.

    Raises:
        NotTensorsError: If its transformations are not understood.
    """
    read = getattr(type(data), "__getitem__", None)
    if read in (datasets.MNIST.__getitem__, TensorMNIST.__getitem__):
        stored, labels = data.data[:, None], torch.as_tensor(data.targets)
    elif read is datasets.CIFAR10.__getitem__:
        stored = torch.from_numpy(data.data).movedim(3, 1)
        stored, labels = stored if index is not None else stored.contiguous(), torch.as_tensor(data.targets)
    else:
        return None
    if stored.dtype != torch.uint8:
        raise NotTensorsError(f"its images are {stored.dtype}")
    rows = Rows((stored, labels.long()), pictures=True).pick(index)
    if read is TensorMNIST.__getitem__:
        rows = Rows(rows.columns, (Scaled(torch.float32),))
    return with_labels(with_inputs(rows, data.transform), data.target_transform)


def with_inputs(rows: Rows, transform: Any) -> Rows:
    """Add a transformation of inputs.

    Args:
        rows: Samples.
        transform: One of torchvision's, or None.

    Raises:
        NotTensorsError: If it is not understood.
    """
    if transform is None:
        return rows
    kind = type(transform)
    if kind is transforms.Compose:
        for part in transform.transforms:
            rows = with_inputs(rows, part)
        return rows
    if rows.columns[0].dim() != 4:
        raise NotTensorsError("samples pass through transformations, and are no images")
    if kind is transforms.ToTensor and rows.pictures:
        return Rows(rows.columns, (*rows.steps, Scaled(torch.get_default_dtype())))
    step: Normalised | Cropped | Mirrored
    if kind is transforms.Normalize and not rows.pictures:
        step = Normalised(_numbers(transform.mean), _numbers(transform.std))
        if 0 in step.std:
            raise NotTensorsError("its Normalize divides by 0")
    elif kind is transforms.RandomCrop and _plain(transform):
        step = Cropped(transform.size, border(transform.padding))
    elif kind in (transforms.RandomHorizontalFlip, transforms.RandomVerticalFlip):
        step = Mirrored(float(transform.p), -1 if kind is transforms.RandomHorizontalFlip else -2)
    else:
        raise NotTensorsError(f"samples pass through {_name(transform)}")
    return Rows(rows.columns, (*rows.steps, step), rows.pictures)


def with_labels(rows: Rows, transform: Any) -> Rows:
    """Renumber labels.

    Args:
        rows: Samples.
        transform: Avalanche's own renumbering of classes, or None.

    Raises:
        NotTensorsError: If it is something else.
    """
    if transform is None:
        return rows
    known = isinstance(transform, partial) and transform.func is lookup and not transform.keywords
    if not known or not isinstance(transform.args[0], Sequence):
        raise NotTensorsError(f"labels pass through {_name(transform)}")
    inputs, labels, *others = rows.columns
    numbers = torch.as_tensor(transform.args[0], dtype=torch.int64)[labels.cpu()]
    return Rows((inputs, numbers, *others), rows.steps, rows.pictures)


def _plain(crop: transforms.RandomCrop) -> bool:
    return crop.padding_mode == "constant" and crop.fill == 0 and not crop.pad_if_needed


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values) if isinstance(values, Iterable) else (float(values),)


def _name(transform: Any) -> str:
    return getattr(transform, "__name__", None) or type(transform).__name__
