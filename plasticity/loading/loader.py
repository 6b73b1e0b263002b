"""The mini-batches of Avalanche's loaders, out of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from plasticity.loading.rows import NotTensorsError
from plasticity.loading.tensors import dataset_rows

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
        self.device = self.rows.columns[0].device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        # A DataLoader draws this for its workers, whether it has any or not, at the start of every epoch.
        torch.empty((), dtype=torch.int64).random_(generator=self._generator)
        for index in _indices(self._sampler(), self.device):
            yield self.rows.samples(index)

    def _sampler(self) -> Any:
        """Return what says which samples come in each mini-batch of an epoch."""
        loader = self.loader
        if isinstance(loader, DataLoader):
            return loader.batch_sampler
        # As its own `_get_loader` does, which first goes through all samples to see whether FFCV is to read them.
        samplers = loader._create_samplers(
            loader.datasets, loader.batch_sizes, loader.distributed_sampling, loader.loader_kwargs
        )
        if len(samplers) == 1 and not loader.never_ending:
            return samplers[0]  # there is nothing to mix
        return MultiDatasetSampler(
            loader.datasets,
            samplers,
            termination_dataset_idx=loader.termination_dataset,
            oversample_small_datasets=loader.oversample_small_datasets,
            never_ending=loader.never_ending,
        )


def _indices(batch_sampler: Any, device: torch.device) -> Iterator[Tensor]:
    """The numbers of the samples of each mini-batch, as tensors on a device.

    A random order of all samples is drawn at once, as PyTorch does too when the first sample is asked for, but handed
    over at once as well. Other samplers may draw in between, and are asked for one mini-batch after another.
    """
    if not _drawn_at_once(batch_sampler):
        for indices in batch_sampler:
            yield torch.tensor(indices).to(device, non_blocking=True)
    elif len(batch_sampler):
        order = _numbers(batch_sampler.sampler).to(device, non_blocking=True)
        yield from order.split(batch_sampler.batch_size)[: len(batch_sampler)]


def _numbers(sampler: Any) -> Tensor:
    """What a sampler draws; by way of an array, which takes a third of the time of a list."""
    return torch.from_numpy(np.fromiter(sampler, np.int64, len(sampler)))


def _drawn_at_once(batch_sampler: Any) -> bool:
    if type(batch_sampler) is not BatchSampler:
        return False
    sampler = batch_sampler.sampler
    if type(sampler) is RandomSampler:
        return sampler.generator is None and not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    return type(sampler) is SequentialSampler
