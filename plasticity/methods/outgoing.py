"""What a unit's readers make of it: the magnitude of its outgoing weights, and its mean contribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plasticity.groups import Consumer, UnitGroup, layer
from plasticity.surgery import columns_of


class OutgoingMagnitude:
    """Adds up the magnitudes of units' outgoing weights; keeps the column maps of groups on the device.

    Args:
        average: Divide by the number of outgoing weights.
    """

    def __init__(self, *, average: bool = False) -> None:
        self.average = average
        self._maps: dict[tuple[str, str], tuple[Tensor, Tensor | None, Tensor]] = {}

    def of(self, model: nn.Module, group: UnitGroup) -> Tensor:
        """Return the sums, or means over the weights of each reader, (size,) float32, on the device."""
        total: Tensor | None = None
        for reader in group.readers:
            module = layer(model, reader.layer)
            weight = module.weight
            assert isinstance(weight, Tensor)
            groups = int(getattr(module, "groups", 1))
            per_column = _per_column(weight.detach(), groups)
            columns, taken = self._map(group, reader, per_column)
            sums = per_column if columns is None else torch.cat([per_column, per_column.new_zeros(1)])[columns].sum(1)
            if self.average:
                sums = sums / (taken * (weight.numel() // len(per_column)))
            total = sums if total is None else total + sums
        assert total is not None
        return total

    def _map(self, group: UnitGroup, reader: Consumer, per_column: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the columns of each unit, None if unit u is read through column u alone, and how many they are."""
        key = (group.name, reader.layer)
        known = self._maps.get(key)
        if known is None or known[0] is not reader.columns:
            device, columns = per_column.device, reader.columns
            plain = torch.equal(columns.flatten(), torch.arange(len(per_column)))
            taken = (columns >= 0).sum(1).clamp(min=1).to(device)
            known = (columns, None if plain and reader.columns_per_unit == 1 else columns.to(device), taken)
            self._maps[key] = known
        return known[1], known[2]


def _per_column(weight: Tensor, groups: int) -> Tensor:
    """Return the sum of magnitudes in each input column of a weight, counted over all groups, float32."""
    magnitudes = weight.abs().float().reshape(groups, len(weight) // groups, -1)  # (groups, rows, columns x taps)
    ones = magnitudes.new_ones(groups, 1, magnitudes.shape[1])
    return (
        (ones @ magnitudes).reshape(groups * weight.shape[1], -1).sum(1)
    )  # a product is quicker than a sum of columns


def transfer_to_bias(model: nn.Module, group: UnitGroup, index: Tensor, means: Tensor) -> None:
    """Add the mean contribution of some units to the bias of their readers.

    A convolution's edges, where taps fall outside, count like all else. Readers without a bias, and readers that read
    some units through fewer columns than others, are left alone.

    Args:
        model: The network.
        group: The units' group.
        index: (n,) numbers of the units.
        means: (n,) their mean activations.
    """
    for reader in group.readers:
        module = layer(model, reader.layer)
        bias, weight = module.bias, module.weight
        columns = columns_of(model, reader, index)
        if not isinstance(bias, Tensor) or not isinstance(weight, Tensor) or columns is None:
            continue
        read = columns.read(weight.detach())
        part = read.flatten(2).sum(2) if read.dim() > 2 else read  # (n x columns per unit, rows of a group)
        part = part * means.to(part).repeat_interleave(reader.columns_per_unit)[:, None]
        with torch.no_grad():
            bias.view(columns.groups or 1, -1).index_add_(0, columns.index[0], part)
