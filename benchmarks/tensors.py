"""The samples of an Avalanche data set as tensors, exactly as iterating over it would give them.

Avalanche's data sets are trees of subsets and concatenations. Where the leaves are `TensorDataset`s or `Images` and no
transformation lies in between, whole tensors can be indexed instead of one sample after another.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset, FlatData, MultiParamCompose, TupleTransform
from avalanche.benchmarks.utils.classification_dataset import _TensorClassificationDataset, lookup
from avalanche.benchmarks.utils.data import _FlatDataWithTransform
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset, default_collate

from benchmarks.images import Images
from plasticity.errors import UserError


class NotTensorsError(UserError):
    """Data that cannot be had as tensors without a risk of changing them; the message says why."""


def dataset_tensors(dataset: Any) -> list[Tensor]:
    """Get all samples of a data set as tensors, one for each element of a sample.

    Args:
        dataset: An `AvalancheDataset`, an `Images`, or a `TensorDataset`, `Subset` or `ConcatDataset` of PyTorch's.

    Returns:
        What collating all samples would give: inputs, labels, and further columns such as the task labels, each
        (samples, ...). They may share memory with the data set.

    Raises:
        NotTensorsError: If samples do not come from tensors alone, or pass through a transformation other than
            Avalanche's renumbering of classes.
    """
    return _select(dataset, None)


def _select(data: Any, index: Tensor | None) -> list[Tensor]:
    """The rows `index` of a node of the tree; None: all rows."""
    kind = type(data)
    if isinstance(data, AvalancheDataset) and kind.__getitem__ is AvalancheDataset.__getitem__:
        flat = data._flat_data
        columns = _select_flat(flat, index, flat._transform_groups.current_group)
        return columns + [_attribute(a, index) for a in data._data_attributes.values() if a.use_in_getitem]
    if isinstance(data, FlatData) and kind in (FlatData, _FlatDataWithTransform):
        return _select_flat(data, index, data._transform_groups.current_group if kind is not FlatData else None)
    if kind is Subset:
        own = torch.as_tensor(data.indices, dtype=torch.int64)
        return _select(data.dataset, own if index is None else own[index])
    if kind is ConcatDataset:
        return _select_parts([partial(_select, part) for part in data.datasets], data.cumulative_sizes, index)
    if kind is Images:
        return data.select(index)
    if kind in (TensorDataset, _TensorClassificationDataset):
        columns = [c if index is None else c[index.to(c.device)] for c in data.tensors]
        if kind is _TensorClassificationDataset:  # hands out labels as Python numbers
            if columns[1].is_floating_point() or columns[1].dtype == torch.bool:
                raise NotTensorsError("labels are not integers")
            columns[1] = columns[1].long()
        return columns
    raise NotTensorsError(f"samples come from a {kind.__name__}")


def _select_flat(data: Any, index: Tensor | None, group: str | None) -> list[Tensor]:
    if data._indices is not None:
        own = torch.tensor(list(data._indices), dtype=torch.int64)
        index = own if index is None else own[index]
    transforms = isinstance(data, _FlatDataWithTransform)
    parts = [  # the transformation group in force at the top holds all the way down
        partial(_select_flat, part, group=group)
        if transforms and isinstance(part, _FlatDataWithTransform)
        else partial(_select, part)
        for part in data._datasets
    ]
    columns = _select_parts(parts, data._cumulative_sizes, index)
    if transforms:
        for groups in (data._frozen_transform_groups, data._transform_groups):
            for mapping in [] if groups is None else _renumberings(groups, group):
                columns[1] = torch.as_tensor(mapping, dtype=torch.int64)[columns[1].cpu()]
    return columns


def _select_parts(parts: list[Any], ends: Sequence[int], index: Tensor | None) -> list[Tensor]:
    """The rows `index` of a concatenation, taking from each part only what is asked of it."""
    if not parts:
        raise NotTensorsError("there are no samples")
    if len(parts) == 1:
        return parts[0](index)
    if index is None:
        return _joined([part(None) for part in parts])
    taken, places = [], []
    for part, (start, end) in zip(parts, pairwise([0, *ends]), strict=True):
        place = torch.nonzero((index >= start) & (index < end)).flatten()
        if len(place):
            taken.append(part(index[place] - start))
            places.append(place)
    if not taken:
        raise NotTensorsError("there are no samples")
    back = torch.cat(places).argsort()
    return [column[back.to(column.device)] for column in _joined(taken)]


def _joined(parts: list[list[Tensor]]) -> list[Tensor]:
    if len({tuple((c.shape[1:], c.dtype, c.device) for c in columns) for columns in parts}) > 1:
        raise NotTensorsError("samples differ in shape, type or device")
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _attribute(attribute: Any, index: Tensor | None) -> Tensor:
    rows = range(len(attribute)) if index is None else index.tolist()
    column = default_collate([attribute[row] for row in rows])
    if not isinstance(column, Tensor):
        raise NotTensorsError(f"its attribute {attribute.name!r} is not a number")
    return column


def _renumberings(groups: Any, group: str | None) -> list[Sequence[int]]:
    """The class mappings that a transformation group applies to the labels, in order."""
    try:
        transform = groups.transform_groups[group]
    except KeyError:
        raise NotTensorsError(f"there is no transformation group {group!r}") from None
    return _mappings(transform)


def _mappings(transform: Any) -> list[Sequence[int]]:
    if transform is None:
        return []
    if type(transform) is MultiParamCompose:
        return [mapping for part in transform.transforms for mapping in _mappings(part)]
    if type(transform) is TupleTransform:
        found = []
        for position, part in enumerate(transform.transforms):
            if part is None:
                continue
            if position != 1 or not isinstance(part, partial) or part.func is not lookup or part.keywords:
                raise NotTensorsError("samples pass through transformations")
            found.append(part.args[0])
        return found
    raise NotTensorsError("samples pass through transformations")
