"""The mini-batches of Avalanche's loaders, out of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, default_collate

from plasticity.loading.tensors import dataset_rows
from plasticity.rows import NotTensorsError

ROOM = 2**28
"""Bytes of inputs that are made at once; more than that are made from what is stored, a mini-batch at a time."""

_OWN = ("__iter__", "_get_loader", "_make_pytorch_loader", "_create_samplers")


class TensorLoader:
    """The mini-batches of another loader, indexed out of tensors.

    The other loader says which samples come in each mini-batch, and random numbers are drawn when and as it draws them.

    Args:
        loader: A `DataLoader`, or a loader of Avalanche's that mixes several data sets.
        device: Where the tensors lie.
        room: Bytes that inputs may take. Stored images whose inputs would take more become inputs when they are read.

    Raises:
        NotTensorsError: If the loader's data cannot be had as tensors without changing what it yields.
    """

    def __init__(self, loader: Any, device: torch.device | str, room: float = ROOM) -> None:
        self.loader = loader
        dataset: Any
        if isinstance(loader, MultiDatasetDataLoader):
            if any(getattr(type(loader), name) is not getattr(MultiDatasetDataLoader, name) for name in _OWN):
                raise NotTensorsError(f"its loader is a {type(loader).__name__}")
            parts: list[Any] = loader.datasets
            dataset, collate = ConcatDataset(parts), loader.loader_kwargs["collate_fn"]
            self._generator = loader.loader_kwargs.get("generator")
        elif type(loader) is DataLoader and isinstance(loader.batch_sampler, torch.utils.data.Sampler):
            dataset, collate, self._generator = loader.dataset, loader.collate_fn, loader.generator
        else:
            raise NotTensorsError(f"its loader is a {type(loader).__name__}")
        if collate is not default_collate:
            raise NotTensorsError("its loader has a collate function of its own")
        self.rows = dataset_rows(dataset).settled(room).to(device)

    def _sampler(self) -> Iterable[list[int]]:
        """Return what says which samples come in each mini-batch of an epoch."""
        loader = self.loader
        if isinstance(loader, DataLoader):
            assert loader.batch_sampler is not None
            return loader.batch_sampler
        # As its own `_get_loader` does, which first goes through all samples to see whether FFCV is to read them.
        samplers = loader._create_samplers(
            loader.datasets, loader.batch_sizes, loader.distributed_sampling, loader.loader_kwargs
        )
        return MultiDatasetSampler(
            loader.datasets,
            samplers,
            termination_dataset_idx=loader.termination_dataset,
            oversample_small_datasets=loader.oversample_small_datasets,
            never_ending=loader.never_ending,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        device = self.rows.columns[0].device
        # A DataLoader draws this for its workers, whether it has any or not, at the start of every epoch.
        torch.empty((), dtype=torch.int64).random_(generator=self._generator)
        for indices in self._sampler():
            yield self.rows.samples(torch.tensor(indices).to(device, non_blocking=True))
