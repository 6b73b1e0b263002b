"""Change single hidden units: silence them or make them new, weights and optimizer state together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import Consumer, UnitGroup, Write, layer, unwrap
from plasticity.surgery.masks import Masks
from plasticity.surgery.optimizer_state import Moments, clean_state
from plasticity.surgery.slices import Slices

Index = Tensor | Sequence[int]
OUTGOING_SHARE = 0.1
"""For `clean_state`: the gradient of a new unit's outgoing weights is at once as large as that of other weights."""


def silence(model: nn.Module, group: UnitGroup, index: Index, optimizer: Optimizer | None = None) -> None:
    """Set the outgoing weights of some units to 0, so that nothing downstream sees them.

    Args:
        model: The network.
        group: A private group of it.
        index: (n,) numbers of the units, or a (size,) boolean mask.
        optimizer: If given, its state is zeroed at these weights.

    Raises:
        UserError: If the group is not private, or the index does not fit it.
    """
    chosen = units_index(group, index)
    _require_private(group)
    with torch.no_grad():
        for reader in group.readers:
            _silence(model, reader, chosen, None, optimizer, "zero")


def reinitialise(
    model: nn.Module,
    group: UnitGroup,
    index: Index,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
    *,
    initial: Mapping[str, Tensor] | None = None,
    masks: Masks | None = None,
    moments: Moments = "young",
    marked: Tensor | None = None,
) -> None:
    """Make some units new: fresh incoming weights and bias, outgoing weights 0, optimizer state cleaned.

    Fresh weights come from the layer's own initial distribution: drawn from the values it had at the start where
    `initial` has them, else as `reset_parameters` of the layer draws them. A normaliser between writer and activation
    starts anew for these units: scale 1, shift 0, mean 0, variance 1, or as in `initial`. The readers keep their bias.

    Args:
        model: The network.
        group: A private group of it.
        index: (n,) numbers of the units, or a (size,) boolean mask. Nothing waits for the device where these are
            numbers on it, no unit twice, and `initial` is on it too.
        optimizer: Its state is cleaned at every changed weight, and nowhere else.
        generator: Where fresh weights are drawn from, the same for every device; None: PyTorch's own, of the CPU.
        initial: Parameters and buffers at initialisation by qualified name, such as a copied `state_dict()`.
        masks: Removed connections, which stay removed.
        moments: What becomes of second moments, see `plasticity.surgery.optimizer_state.clean_state`.
        marked: (n,) bool on the model's device, which of the units named by number are meant; None: all. The others
            stay bit-equal, so that the device can decide how many units are made new.

    Raises:
        UserError: If the group is not private, or the index does not fit it.
    """
    chosen = units_index(group, index)
    if marked is None and chosen.device.type == "cpu":
        chosen = chosen.unique()
    _require_private(group)
    if chosen.numel() == 0:
        return
    with torch.no_grad():
        for write in group.writes:
            _renew_rows(model, write, chosen, marked, optimizer, generator, initial or {}, moments)
        for reader in group.readers:
            _silence(model, reader, chosen, marked, optimizer, moments)
        if masks is not None:
            masks.apply(model)


def units_index(group: UnitGroup, index: Index) -> Tensor:
    """Return unit numbers as a 1-D int64 tensor.

    Raises:
        UserError: If a number is out of range or a mask has another length.
    """
    try:
        chosen = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"units of group '{group.name}' are chosen by whole numbers or a boolean mask") from None
    if chosen.dtype == torch.bool:
        if chosen.shape != (group.size,):
            raise UserError(f"group '{group.name}' has {group.size} units, the mask has shape {tuple(chosen.shape)}")
        return chosen.nonzero().flatten()
    if chosen.numel() == 0:
        return chosen.to(torch.int64).flatten()
    if chosen.is_floating_point() or chosen.dim() > 1:
        raise UserError(f"units of group '{group.name}' are chosen by whole numbers or a boolean mask")
    chosen = chosen.to(torch.int64).flatten()
    if chosen.device.type == "cpu" and (int(chosen.min()) < 0 or int(chosen.max()) >= group.size):
        raise UserError(f"group '{group.name}' has units 0 to {group.size - 1}, not {chosen.tolist()}")
    return chosen


def outgoing(model: nn.Module, reader: Consumer, index: Tensor, marked: Tensor | None = None) -> Tensor:
    """Return where a reader's weight reads some units.

    Args:
        model: The network.
        reader: A consumer of the units' group.
        index: (n,) numbers of the units.
        marked: (n,) bool, which of them are meant; None: all.

    Returns:
        Boolean tensor of the shape of the reader's weight.
    """
    module = layer(model, reader.layer)
    weight = _own(module, reader.layer, "weight")
    columns = _look_up(reader.columns, index, weight.device)
    if marked is not None:
        columns = torch.where(marked[:, None], columns, -1)
    groups = int(getattr(module, "groups", 1))
    hit = torch.zeros(weight.shape[1] * groups + 1, dtype=torch.bool, device=weight.device)
    hit[columns.flatten()] = True  # padding, -1, hits the extra last place
    per_group = hit[:-1].view(groups, 1, weight.shape[1]).expand(groups, weight.shape[0] // groups, weight.shape[1])
    rows = per_group.reshape(weight.shape[0], weight.shape[1])
    return rows.view(*rows.shape, *[1] * (weight.dim() - 2)).expand(weight.shape)


def columns_of(model: nn.Module, reader: Consumer, index: Tensor, marked: Tensor | None = None) -> Slices | None:
    """Return the columns through which a reader reads some units, one unit after the other.

    Args:
        model: The network.
        reader: A consumer of the units' group.
        index: (n,) numbers of the units.
        marked: (n,) bool, which of them are meant; None: all.

    Returns:
        The n * columns_per_unit columns; None if the reader reads some units through fewer.
    """
    if bool((reader.columns < 0).any()):
        return None
    module = layer(model, reader.layer)
    weight = _own(module, reader.layer, "weight")
    columns = _look_up(reader.columns, index, weight.device).flatten()
    every = None if marked is None else marked.repeat_interleave(reader.columns_per_unit)
    return Slices.columns(columns, weight.shape[1], int(getattr(module, "groups", 1)), every)


def _silence(
    model: nn.Module,
    reader: Consumer,
    index: Tensor,
    marked: Tensor | None,
    optimizer: Optimizer | None,
    moments: Moments,
) -> None:
    weight = _own(layer(model, reader.layer), reader.layer, "weight")
    where: Tensor | Slices | None = columns_of(model, reader, index, marked)
    if isinstance(where, Slices):
        where.fill(weight, 0.0)
    else:
        where = outgoing(model, reader, index, marked)
        weight.masked_fill_(where, 0)
    _forget_gradient(weight, where)
    clean_state(optimizer, weight, where, moments, OUTGOING_SHARE)


def _forget_gradient(parameter: Tensor, where: Tensor | Slices) -> None:
    """Set gradients to 0 that are of the values before: where several are added up, an update is still to come."""
    gradient = parameter.grad
    if gradient is None:
        return
    if isinstance(where, Slices):
        where.fill(gradient, 0.0)
    else:
        gradient.masked_fill_(where, 0)


def _rows_of(rows: Tensor, index: Tensor, marked: Tensor | None, device: torch.device) -> Slices:
    """Return which rows write some units; there is none for a unit of which `rows` has -1."""
    found = _look_up(rows, index, device)
    if bool((rows < 0).any()):  # only in groups made by hand
        marked = None if marked is None else marked[found >= 0]
        found = found[found >= 0]
    return Slices.rows(found, marked)


def _look_up(table: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Return entries of a table, which is on the host, on a device."""
    return table.to(index.device, non_blocking=True)[index].to(device, non_blocking=True)


def _renew_rows(
    model: nn.Module,
    write: Write,
    index: Tensor,
    marked: Tensor | None,
    optimizer: Optimizer | None,
    generator: torch.Generator | None,
    initial: Mapping[str, Tensor],
    moments: Moments,
) -> None:
    module = layer(model, write.layer)
    weight = _own(module, write.layer, "weight")  # refuses one that is not the layer's own
    rows = _rows_of(write.rows, index, marked, weight.device)
    for name, values in _fresh(module, write.layer, rows, generator, initial).items():
        parameter = _own(module, write.layer, name)
        rows.fill(parameter, values)
        _forget_gradient(parameter, rows)
        clean_state(optimizer, parameter, rows, moments)
    if write.norm is None or write.norm_rows is None:
        return
    norm = unwrap(model).get_submodule(write.norm)
    start = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for name, value in start.items():
        tensor = getattr(norm, name, None)
        if isinstance(tensor, Tensor) and tensor.dim() == 1:
            channels = _rows_of(write.norm_rows, index, marked, tensor.device)
            first = initial.get(f"{write.norm}.{name}")
            known = first is not None and first.shape == tensor.shape
            channels.fill(tensor, channels.read(first.to(tensor)) if known and first is not None else value)
            _forget_gradient(tensor, channels)
            clean_state(optimizer, tensor, channels, moments)


def _fresh(
    module: nn.Module, name: str, rows: Slices, generator: torch.Generator | None, initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Draw rows of a weight and bias from a layer's initial distribution, (n, ...) each."""
    own = {key: value for key, value in module.named_parameters(recurse=False) if key in ("weight", "bias")}
    known = {key: initial[f"{name}.{key}"] for key in own if f"{name}.{key}" in initial}
    if len(known) == len(own):
        drawn = {}
        for key, parameter in own.items():
            pool = known[key].to(parameter).flatten()
            device = generator.device if generator is not None else torch.device("cpu")
            shape = (len(rows.index[0]), *parameter.shape[1:])
            picks = torch.randint(len(pool), shape, generator=generator, device=device)
            drawn[key] = pool[picks.to(parameter.device, non_blocking=True)]
        return drawn
    reset = getattr(module, "reset_parameters", None)
    if not callable(reset):
        raise UserError(f"layer '{name}' ({type(module).__name__}) has no reset_parameters(); give `initial` instead")
    with _copied(module), torch.random.fork_rng(devices=[], enabled=generator is not None):
        if generator is not None:
            seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
            torch.default_generator.manual_seed(int(seed))
        reset()
        return {key: rows.read(getattr(module, key).detach().to(value.device)) for key, value in own.items()}


@contextmanager
def _copied(module: nn.Module) -> Iterator[None]:
    """Let a layer work on copies of its tensors on the CPU, whose random numbers are the same for every device."""
    parameters, buffers = dict(module._parameters), dict(module._buffers)
    try:
        for key, parameter in module.named_parameters(recurse=False):
            module._parameters[key] = nn.Parameter(parameter.detach().to("cpu", copy=True), parameter.requires_grad)
        for key, buffer in module.named_buffers(recurse=False):
            module._buffers[key] = buffer.detach().to("cpu", copy=True)
        yield
    finally:
        module._parameters.update(parameters)
        module._buffers.update(buffers)


def _own(module: nn.Module, name: str, which: str) -> nn.Parameter:
    parameter = getattr(module, which)
    if not isinstance(parameter, nn.Parameter):
        raise UserError(f"the {which} of layer '{name}' is computed from other tensors and cannot be changed in place")
    return parameter


def _require_private(group: UnitGroup) -> None:
    if not group.private:
        raise UserError(f"the outgoing weights of group '{group.name}' cannot be changed alone: {group.reason}")
