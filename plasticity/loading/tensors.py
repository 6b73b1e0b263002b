"""The samples of an Avalanche data set as tensors, exactly as iterating over it would give them.

Avalanche's data sets are trees of subsets and concatenations. Where the leaves hold tensors or arrays of images, and
the transformations in between are understood, whole tensors can be indexed instead of one sample after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    FlatData,
    MultiParamCompose,
    TupleTransform,
)
from avalanche.benchmarks.utils.classification_dataset import _TensorClassificationDataset
from avalanche.benchmarks.utils.data import _FlatDataWithTransform
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset, default_collate

from plasticity.loading.pictures import picture_rows, with_inputs, with_labels
from plasticity.loading.rows import NotTensorsError, Rows, joined


def dataset_tensors(dataset: Any) -> list[Tensor]:
    """Get all samples of a data set as tensors, one for each element of a sample.

    Args:
        dataset: As for `dataset_rows`.

    Returns:
        What collating all samples would give: inputs, labels, and further columns such as the task labels, each
        (samples, ...). They may share memory with the data set.

    Raises:
        NotTensorsError: As for `dataset_rows`, and if samples pass through random transformations.
    """
    rows = dataset_rows(dataset).settled()
    if rows.steps:
        raise NotTensorsError("samples pass through random transformations")
    return list(rows.columns)


def dataset_rows(dataset: Any) -> Rows:
    """Get the samples of a data set as tensors, with what has to be done to them each time they are read.

    Args:
        dataset: An `AvalancheDataset`, or a `TensorDataset`, `Subset` or `ConcatDataset` of PyTorch's. Samples come
            from `TensorDataset`s, from torchvision's MNIST, FashionMNIST, KMNIST, EMNIST, CIFAR10 and CIFAR100, or
            from data sets that have a method `tensor_rows`, as `Rows` describes it.

    Raises:
        NotTensorsError: If they come from elsewhere, or pass through transformations other than torchvision's
            `ToTensor`, `Normalize`, `RandomCrop`, `RandomHorizontalFlip` and `RandomVerticalFlip`, and Avalanche's
            renumbering of classes.
    """
    rows = _select(dataset, None)
    if rows.pictures:
        raise NotTensorsError("no transformation turns its images into tensors")
    return rows


def _select(data: Any, index: Tensor | None) -> Rows:
    """The rows `index` of a node of the tree; None: all rows."""
    kind = type(data)
    if isinstance(data, AvalancheDataset) and kind.__getitem__ is AvalancheDataset.__getitem__:
        flat = data._flat_data
        rows = _select_flat(flat, index, flat._transform_groups.current_group)
        further = [_attribute(a, index) for a in data._data_attributes.values() if a.use_in_getitem]
        return Rows((*rows.columns, *further), rows.steps, rows.pictures)
    if isinstance(data, FlatData) and kind in (FlatData, _FlatDataWithTransform):
        groups = data._transform_groups if isinstance(data, _FlatDataWithTransform) else None
        return _select_flat(data, index, None if groups is None else groups.current_group)
    if kind is Subset:
        own = torch.as_tensor(data.indices, dtype=torch.int64)
        return _select(data.dataset, own if index is None else own[index])
    if kind is ConcatDataset:
        return _select_parts([partial(_select, part) for part in data.datasets], data.cumulative_sizes, index)
    return _select_leaf(data, index)


def _select_leaf(data: Any, index: Tensor | None) -> Rows:
    if hasattr(data, "ffcv_info"):
        raise NotTensorsError("it is read by FFCV")
    if hasattr(data, "tensor_rows"):
        rows: Rows = data.tensor_rows(index)
        return rows
    kind = type(data)
    if kind in (TensorDataset, _TensorClassificationDataset):
        columns = [c if index is None else c[index.to(c.device)] for c in data.tensors]
        if kind is _TensorClassificationDataset:  # hands out labels as Python numbers
            if columns[1].is_floating_point() or columns[1].dtype == torch.bool:
                raise NotTensorsError("labels are not integers")
            columns[1] = columns[1].long()
        return Rows(tuple(columns))
    pictures = picture_rows(data, index)
    if pictures is None:
        raise NotTensorsError(f"samples come from a {kind.__name__}")
    return pictures


def _select_flat(data: Any, index: Tensor | None, group: str | None) -> Rows:
    if data._indices is not None:
        own = torch.tensor(list(data._indices), dtype=torch.int64)
        index = own if index is None else own[index]
        if torch.equal(index, torch.arange(sum(len(part) for part in data._datasets))):
            index = None  # as balanced loaders have it: then nothing has to be copied
    transforms = isinstance(data, _FlatDataWithTransform)
    parts = [  # the transformation group in force at the top holds all the way down
        partial(_select_flat, part, group=group)
        if transforms and isinstance(part, _FlatDataWithTransform)
        else partial(_select, part)
        for part in data._datasets
    ]
    rows = _select_parts(parts, data._cumulative_sizes, index)
    if transforms:
        for groups in (data._frozen_transform_groups, data._transform_groups):
            rows = rows if groups is None else _transformed(rows, _transform(groups, group))
    return rows


def _select_parts(parts: Sequence[Callable[..., Rows]], ends: Sequence[int], index: Tensor | None) -> Rows:
    """The rows `index` of a concatenation, taking from each part only what is asked of it."""
    if not parts:
        raise NotTensorsError("there are no samples")
    if len(parts) == 1:
        return parts[0](index)
    if index is None:
        return joined([part(None) for part in parts])
    taken, places = [], []
    for part, (start, end) in zip(parts, pairwise([0, *ends]), strict=True):
        place = torch.nonzero((index >= start) & (index < end)).flatten()
        if len(place):
            taken.append(part(index[place] - start))
            places.append(place)
    if not taken:
        raise NotTensorsError("there are no samples")
    return joined(taken).pick(torch.cat(places).argsort())


def _attribute(attribute: Any, index: Tensor | None) -> Tensor:
    data = attribute.data
    if type(data) is FlatData and data._indices is None and len(data._datasets) == 1:
        data = data._datasets[0]
    count = len(attribute) if index is None else len(index)
    if type(data) is ConstantSequence and type(data[0]) is int:
        return torch.full((count,), data[0], dtype=torch.int64)
    rows = range(count) if index is None else index.tolist()
    column = default_collate([attribute[row] for row in rows])
    if not isinstance(column, Tensor):
        raise NotTensorsError(f"its attribute {attribute.name!r} is not a number")
    return column


def _transform(groups: Any, group: str | None) -> Any:
    try:
        return groups.transform_groups[group]
    except KeyError:
        raise NotTensorsError(f"there is no transformation group {group!r}") from None


def _transformed(rows: Rows, transform: Any) -> Rows:
    """Add what a transformation group does to inputs and labels."""
    if transform is None:
        return rows
    if type(transform) is MultiParamCompose:
        for part in transform.transforms:
            rows = _transformed(rows, part)
        return rows
    if type(transform) is not TupleTransform:
        raise NotTensorsError("samples pass through transformations")
    for position, part in enumerate(transform.transforms):
        if part is not None and position > 1:
            raise NotTensorsError("samples pass through transformations")
        rows = with_inputs(rows, part) if position == 0 else with_labels(rows, part)
    return rows
