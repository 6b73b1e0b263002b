"""Several processes that train copies of one network, each on its own part of every mini-batch.

DistributedDataParallel averages gradients and nothing else. Methods that judge units need what all processes saw, or
each would treat its own copy differently. How each state is put together:

- sums and counts (`UnitStatistics`, sums of a mini-batch): added up, by `add_up` or `of_all`;
- samples on which units are judged: gathered, in the order in which one process would have seen them, by
  `batches_of_all`;
- weights, masks, ages, random generators: equal everywhere, since what they follow from is; `require_agreement` looks.

A process that is lost, or does not come, ends the wait of the others with a `UserError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from plasticity.errors import UserError
from plasticity.watching.unit_statistics import UnitStatistics

Group = Any
"""A process group of `torch.distributed`; None: there is one process alone."""

PATIENCE = timedelta(minutes=5)
"""How long to wait for other processes, at most; the process group's own limit where NCCL does the waiting."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def group_of(model: nn.Module) -> Group:
    """Return the processes that train copies of a model together: those of its DistributedDataParallel, else None."""
    if isinstance(model, DistributedDataParallel) and dist.get_world_size(model.process_group) > 1:
        return model.process_group
    return None


def process_count(group: Group) -> int:
    """Return how many processes there are in a group."""
    return 1 if group is None else dist.get_world_size(group)


def own_copy(model: nn.Module) -> nn.Module:
    """Return this process's copy of a model, whose forward passes wait for no other process."""
    if isinstance(model, DistributedDataParallel):
        module: nn.Module = model.module
        return module
    return model


# --- putting together ----------------------------------------------------------------------------------------------


def add_up(tensors: Sequence[Tensor], group: Group) -> list[Tensor]:
    """Add up tensors over all processes, in one exchange for each data type.

    Args:
        tensors: Of the same shapes and data types in every process.
        group: The processes.

    Returns:
        The sums, the same bits in every process; the tensors themselves where there is one process.

    Raises:
        UserError: If a process is lost.
    """
    if group is None or not tensors:
        return list(tensors)
    found: list[Tensor] = list(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        flat = torch.cat([tensors[place].reshape(-1) for place in places])
        with _patiently():
            _wait(dist.all_reduce(flat, group=group, async_op=True), group)
        for place, part in zip(places, flat.split([tensors[place].numel() for place in places]), strict=True):
            found[place] = part.view(tensors[place].shape)
    return found


def of_all(statistics: Mapping[str, UnitStatistics], group: Group) -> dict[str, UnitStatistics]:
    """Return the statistics of all processes together, in one exchange of sums and one of counts.

    Args:
        statistics: By group name, of the same groups in every process.
        group: The processes.

    Raises:
        UserError: If a process is lost.
    """
    if group is None or not statistics:
        return dict(statistics)
    sums, counts = [], []
    for seen in statistics.values():
        sums += [(seen.mean * seen.count).nan_to_num(0.0), (seen.mean_abs * seen.count).nan_to_num(0.0)]
        counts += [seen.fired, torch.tensor([seen.count], dtype=seen.fired.dtype, device=seen.fired.device)]
        if seen.count:  # what is not a number stays so
            sums[-2:] = [seen.mean * seen.count, seen.mean_abs * seen.count]
    together = add_up([*sums, *counts], group)
    totals, numbers = iter(together[: len(sums)]), iter(together[len(sums) :])
    found = {}
    for name in statistics:
        fired, count, total, magnitude = next(numbers), int(next(numbers)), next(totals), next(totals)
        found[name] = UnitStatistics(fired, count, total / count, magnitude / count)
    return found


def rows_of_all(rows: Tensor, group: Group) -> list[Tensor]:
    """Return the rows of each process, in the order of the processes.

    Args:
        rows: (rows, ...); their number may differ between processes.
        group: The processes.

    Raises:
        UserError: If a process is lost.
    """
    lengths = [int(length) for length in _gathered(torch.tensor([len(rows)], device=rows.device), group)]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    return [part[:length] for part, length in zip(_gathered(padded, group), lengths, strict=True)]


def batches_of_all(batches: Sequence[tuple[Any, ...]], limit: int, group: Group) -> list[tuple[Any, ...]]:
    """Return the latest samples of all processes, ordered as if one had seen their mini-batches put together.

    Args:
        batches: The latest of this process, oldest first: tuples of tensors with a row for each sample.
        limit: How many samples to return, at most.
        group: The processes; each made as many steps.

    Raises:
        UserError: If something else than tensors of that kind is among the inputs, or a process is lost.
    """
    if group is None:
        return list(batches)
    for batch in batches:
        if any(not isinstance(part, Tensor) or part.dim() == 0 or len(part) != len(batch[0]) for part in batch):
            raise UserError("several processes can gather only inputs that are tensors with a row for each sample")
    if not batches:
        raise UserError("no training mini-batch has been seen yet")
    own = torch.tensor([len(batch[0]) for batch in batches], device=batches[0][0].device)
    lengths = [part.tolist() for part in rows_of_all(own, group)]
    columns = [rows_of_all(torch.cat(column), group) for column in zip(*batches, strict=True)]
    steps = max(map(len, lengths))
    found = []
    starts = [0] * len(lengths)
    for step in range(-steps, 0):
        for rank, sizes in enumerate(lengths):
            if len(sizes) >= -step:
                end = starts[rank] + sizes[step]
                found.append(tuple(column[rank][starts[rank] : end] for column in columns))
                starts[rank] = end
    surplus = sum(len(batch[0]) for batch in found) - limit
    while surplus > 0:
        oldest = found.pop(0)
        if len(oldest[0]) > surplus:
            found.insert(0, tuple(part[surplus:] for part in oldest))
        surplus -= len(oldest[0])
    return found


# --- agreeing ------------------------------------------------------------------------------------------------------


def share_buffers(model: nn.Module, group: Group) -> None:
    """Give every process the buffers of the first, such as running statistics.

    DistributedDataParallel does so at the beginning of a forward pass, but units are judged behind it.

    Args:
        model: The network.
        group: The processes.

    Raises:
        UserError: If a process is lost.
    """
    if group is None:
        return
    with torch.no_grad(), _patiently():
        for buffer in own_copy(model).buffers():
            _wait(dist.broadcast(buffer, dist.get_global_rank(group, 0), group=group, async_op=True), group)


def require_agreement(model: nn.Module, group: Group, doer: str) -> None:
    """Make sure that all processes have the same weights, by a checksum of each parameter.

    Args:
        model: The network.
        group: The processes.
        doer: Who may have changed them, for the message.

    Raises:
        UserError: If they have not, or a process is lost.
    """
    if group is None:
        return
    named = list(own_copy(model).named_parameters())
    shapes = torch.tensor([len(named), sum(parameter.numel() for _, parameter in named)])
    sums = [shapes.to(named[0][1].device)] if named else [shapes]
    if _differing(sums[0], group):
        raise UserError(f"{doer}: the processes have networks of different shapes")
    differing = _differing(torch.stack([_checksum(parameter) for _, parameter in named]), group)
    if differing:
        raise UserError(
            f"{doer}: the processes have different weights, '{named[differing[0]][0]}' first. They need the same "
            "seeds, and DistributedDataParallel does not know of parameters that are added after it was made"
        )


def _differing(numbers: Tensor, group: Group) -> list[int]:
    """Return which whole numbers are not the same in all processes."""
    both = torch.cat([numbers, -numbers])
    with _patiently():
        _wait(dist.all_reduce(both, dist.ReduceOp.MAX, group=group, async_op=True), group)
    highest, lowest = both[: len(numbers)], -both[len(numbers) :]
    return [int(place) for place in (highest != lowest).nonzero().flatten().tolist()]


def _checksum(parameter: Tensor) -> Tensor:
    numbers = parameter.detach()
    numbers = (torch.view_as_real(numbers) if numbers.is_complex() else numbers).contiguous().view(-1)
    bits = numbers.view(_BITS[numbers.element_size()])
    return bits.sum(dtype=torch.int64) if len(bits) else torch.zeros((), dtype=torch.int64, device=parameter.device)


# --- exchanging ----------------------------------------------------------------------------------------------------


def _gathered(rows: Tensor, group: Group) -> list[Tensor]:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
    with _patiently():
        _wait(dist.all_gather(parts, rows.contiguous(), group=group, async_op=True), group)
    return parts


def _wait(work: Any, group: Group) -> None:
    """Wait for an exchange; NCCL waits on the device, with the time limit of the group."""
    if dist.get_backend(group) == "gloo":
        work.wait(PATIENCE)
    else:
        work.wait()


@contextmanager
def _patiently() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"another process has ended, or has not come within the time limit: {reason}") from error
