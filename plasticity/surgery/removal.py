"""Remove hidden units physically: the network becomes smaller and faster, its parameters stay the same objects.

A parameter that gets another shape is changed in place, so that optimizers and whoever else holds it go on to work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, layer, unwrap
from plasticity.surgery.masks import Masks
from plasticity.surgery.single_units import Index, units_index

_NORMS = (nn.modules.batchnorm._NormBase,)  # of every kind that treats each channel by itself


@dataclass
class Removal:
    """What was removed, in the numbering from before; made by `remove_units`.

    Attributes:
        units: (size,) bool by group name, True for the units that are kept.
        rows: (output rows,) bool by layer name, True for those that are kept.
        columns: (input columns,) bool by layer name, likewise.
        channels: (channels,) bool by normaliser name, likewise.
    """

    units: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)
    channels: dict[str, Tensor] = field(default_factory=dict)
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Put everything back as it was, if nothing has changed since."""
        while self._undo:
            self._undo.pop()()

    def forget(self) -> None:
        """Let go of what `undo` would need: the memory of the removed weights."""
        self._undo.clear()

    def slice(self, masks: Masks) -> None:
        """Let masks follow: those of removed weights go, the others stay with their weights."""
        state = masks.state_dict()
        for name in state:
            state[name] = _kept(state[name], self.rows.get(name), self.columns.get(name))
        masks.load_state_dict(state)

    def left_of(self, name: str, tensor: Tensor) -> Tensor:
        """Return what is left of a tensor laid out as a parameter or buffer was, such as its initial values.

        Args:
            name: Qualified name of the parameter or buffer.
            tensor: Of its shape before; one of another shape is returned as it is.
        """
        owner, _, key = name.rpartition(".")
        rows = self.rows.get(owner, self.channels.get(owner))
        columns = self.columns.get(owner) if key == "weight" else None
        for dim, kept in ((0, rows), (1, columns)):
            if kept is not None and (tensor.dim() <= dim or tensor.shape[dim] != len(kept)):
                return tensor
        return _kept(tensor, rows, columns)

    def parameters(self) -> dict[str, None]:
        """Return the qualified names of the weights, biases and buffers that have got another shape, as keys."""
        keys = {f"{name}.{key}": None for name in {**self.rows, **self.columns} for key in ("weight", "bias")}
        norms = ("weight", "bias", "running_mean", "running_var")
        return {**keys, **{f"{name}.{key}": None for name in self.channels for key in norms}}


def removal_obstacle(model: nn.Module, group: UnitGroup, optimizer: Optimizer | None = None) -> str | None:
    """Say why units of a group cannot be removed physically, in words; None if nothing is known to be in the way.

    They can where they are private and their layers hold nothing else. That a forward pass counts on their number,
    as `x.view(-1, 400)` does, cannot be seen from here: run the network, and `undo` if it fails.

    Args:
        model: The network.
        group: A group of it.
        optimizer: Its optimizer, whose state has to be sliced along.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return f"{type(model).__name__} holds on to the shapes of parameters"
    if not group.private:
        return group.reason
    touched: list[nn.Module] = []
    for write in group.writes:
        writer = layer(model, write.layer)
        touched.append(writer)
        weight = writer.weight
        assert isinstance(weight, Tensor)
        if not _all_once(write.rows, len(weight)):
            return f"`{write.layer}` writes more than this group"
        if write.norm is not None:
            norm = unwrap(model).get_submodule(write.norm)
            touched.append(norm)
            if not isinstance(norm, _NORMS):
                return f"`{write.norm}` normalises units together"
            if write.norm_rows is None or not _all_once(write.norm_rows, norm.num_features):
                return f"`{write.norm}` scales more than this group"
    touched += [layer(model, reader.layer) for reader in group.readers]
    for module in touched:
        name = next(name for name, other in unwrap(model).named_modules() if other is module)
        if getattr(module, "groups", 1) != 1:
            return f"`{name}` is a grouped convolution, whose groups must stay of equal size"
        foreign = _foreign(module)
        if foreign is not None:
            return f"`{name}` holds {foreign} besides its weight and bias"
        for parameter in module.parameters(recurse=False):
            state = {} if optimizer is None else optimizer.state.get(parameter, {})
            for key, entry in state.items():
                if isinstance(entry, Tensor) and entry.numel() > 1 and entry.shape != parameter.shape:
                    return f"the optimizer's {key} of `{name}` has another shape than the parameter"
    return None


def remove_units(
    model: nn.Module, units: Iterable[UnitGroup], index: Mapping[str, Index], optimizer: Optimizer | None = None
) -> Removal:
    """Remove units from the network: their rows, normaliser entries and columns, with the optimizer's state of these.

    Units that are 0 on all inputs leave no trace; others take their contribution along. The state of all other weights
    stays. The units must be found again afterwards.

    Args:
        model: The network.
        units: Its groups.
        index: By group name, (n,) numbers of the units to remove, or a (size,) boolean mask.
        optimizer: Its optimizer.

    Returns:
        What was removed.

    Raises:
        UserError: If something is in the way, see `removal_obstacle`, or a group would lose all its units; nothing has
            been changed then.
    """
    groups = units if isinstance(units, UnitGroups) else UnitGroups(units)
    removal = Removal()
    for name, numbers in index.items():
        group = groups[name]
        gone = units_index(group, numbers).cpu().unique()
        if len(gone) == 0:
            continue
        obstacle = removal_obstacle(model, group, optimizer)
        if obstacle is not None:
            raise UserError(f"units of group '{name}' cannot be removed: {obstacle}")
        if len(gone) == group.size:
            raise UserError(f"group '{name}' would lose all its {group.size} units")
        kept = torch.ones(group.size, dtype=torch.bool)
        kept[gone] = False
        removal.units[name] = kept
        for write in group.writes:
            _mark(removal.rows, write.layer, len(write.rows), write.rows[gone])
            if write.norm is not None and write.norm_rows is not None:
                _mark(removal.channels, write.norm, len(write.norm_rows), write.norm_rows[gone])
        for reader in group.readers:
            weight = layer(model, reader.layer).weight
            assert isinstance(weight, Tensor)
            columns = reader.columns[gone].flatten()
            _mark(removal.columns, reader.layer, weight.shape[1], columns[columns >= 0])
    with torch.no_grad():
        for name in {**removal.rows, **removal.columns}:
            _shrink_layer(model, name, removal, optimizer)
        for name, kept in removal.channels.items():
            _shrink_norm(unwrap(model).get_submodule(name), kept, removal, optimizer)
    return removal


def _mark(kept: dict[str, Tensor], name: str, length: int, gone: Tensor) -> None:
    kept.setdefault(name, torch.ones(length, dtype=torch.bool))[gone] = False


def _all_once(rows: Tensor, length: int) -> bool:
    return torch.equal(rows.sort().values.cpu(), torch.arange(length))


def _foreign(module: nn.Module) -> str | None:
    """Name something of a module whose shape is not known to follow that of its weight."""
    known = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    if (
        not isinstance(getattr(module, "weight", None), nn.Parameter | type(None))
        or next(module.children(), None) is not None
    ):
        return "a computed weight"
    tensors = {**module._parameters, **module._buffers}
    return next((key for key, value in tensors.items() if value is not None and key not in known), None)


def _shrink_layer(model: nn.Module, name: str, removal: Removal, optimizer: Optimizer | None) -> None:
    module, rows, columns = layer(model, name), removal.rows.get(name), removal.columns.get(name)
    linear = isinstance(module, nn.Linear)
    if columns is not None:
        key = "in_features" if linear else "in_channels"
        before, after = getattr(module, key), int(columns.sum())
        _set_attribute(module, key, after, removal)
        path = name.split(".")[:-1]
        for depth in range(len(path) + 1):  # a head of many tasks makes further heads of this width
            around = unwrap(model).get_submodule(".".join(path[:depth]))
            if vars(around).get(key) == before:
                _set_attribute(around, key, after, removal)
    if rows is not None:
        _set_attribute(module, "out_features" if linear else "out_channels", int(rows.sum()), removal)
    for key, parameter in module.named_parameters(recurse=False):
        _shrink(parameter, rows, columns if key == "weight" else None, removal, optimizer)


def _shrink_norm(norm: nn.Module, kept: Tensor, removal: Removal, optimizer: Optimizer | None) -> None:
    _set_attribute(norm, "num_features", int(kept.sum()), removal)
    for tensor in (*norm.parameters(recurse=False), *norm.buffers(recurse=False)):
        if tensor.dim() == 1:
            _shrink(tensor, kept, None, removal, optimizer)


def _shrink(
    tensor: Tensor, rows: Tensor | None, columns: Tensor | None, removal: Removal, optimizer: Optimizer | None
) -> None:
    """Slice a parameter or buffer in place, with its gradient and optimizer state."""
    if rows is None and columns is None:
        return
    if optimizer is not None and tensor in optimizer.state:
        state = optimizer.state[tensor]
        for key, entry in list(state.items()):
            if isinstance(entry, Tensor) and entry.dim() > 0 and entry.shape == tensor.shape:
                state[key] = _kept(entry, rows, columns)
                removal._undo.append(lambda key=key, entry=entry: state.__setitem__(key, entry))  # type: ignore[misc]
    old, gradient = tensor.detach(), tensor.grad
    replace_values(tensor, _kept(old, rows, columns), None if gradient is None else _kept(gradient, rows, columns))
    removal._undo.append(lambda: replace_values(tensor, old, gradient))


def _kept(tensor: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    for dim, kept in ((0, rows), (1, columns)):
        if kept is not None:
            tensor = tensor.index_select(dim, kept.nonzero().flatten().to(tensor.device))
    return tensor


def replace_values(tensor: Tensor, value: Tensor, gradient: Tensor | None = None) -> None:
    """Give a tensor another shape and content; a graph that still holds it would otherwise expect the old shape."""
    tensor.grad = None
    with torch.no_grad():
        tensor.set_(value)  # type: ignore[call-overload]  # PyTorch's stub has only storages
    tensor.grad = gradient


def _set_attribute(module: nn.Module, key: str, value: int, removal: Removal) -> None:
    before = getattr(module, key)
    removal._undo.append(lambda: setattr(module, key, before))
    setattr(module, key, value)
