"""Linear and Conv layers: they read units through the columns of their weight, and write others by its rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plasticity.groups import WEIGHT_LAYERS
from plasticity.tracing.labels import Value, along, compact, line
from plasticity.tracing.ledger import Ledger, Read
from plasticity.tracing.operations import Operation, mix, rule


@rule("convolution")
def convolution(ledger: Ledger, operation: Operation) -> None:
    """Conv1d, Conv2d, Conv3d; transposed ones are not units' layers."""
    x, weight = operation.args[0], operation.args[1]
    _read_and_write(ledger, operation, x, weight, 1, bool(operation.argument("transposed")))


@rule("addmm mm linear")
def matrix_product(ledger: Ledger, operation: Operation) -> None:
    """A Linear: input times transposed weight. Any other matrix product mixes units."""
    first = 1 if operation.name == "addmm" else 0
    _read_and_write(ledger, operation, operation.args[first], operation.args[first + 1], -1, False)


def _read_and_write(
    ledger: Ledger, operation: Operation, x: Tensor, weight: Tensor, channel: int, transposed: bool
) -> None:
    if any(
        value is not None for tensor, value in zip(operation.inputs, operation.before, strict=True) if tensor is not x
    ):
        mix(ledger, operation)  # a weight or bias that depends on units
        return
    value, result = operation.value(x), operation.results[0]
    names, flipped = ledger.parameters.find(weight)
    as_stored = operation.name in ("convolution", "linear") or weight.numel() == 1
    layer = None if transposed or flipped == as_stored else ledger.layer_of(names, operation.where)
    if layer is not None and getattr(ledger.modules[layer], "groups", 1) != (operation.argument("groups") or 1):
        layer = None
    if value is not None and layer is None:
        what = f"a {operation.name} in `{operation.where}`" if operation.where else f"a {operation.name}"
        reason = f"it is read by {what}, whose weight is not that of a plain Linear or Conv layer"
        ledger.escape(value.labels(), reason)
    elif value is not None and layer is not None:
        read(ledger, layer, value, channel)
    writer = layer if transposed or layer is not None else _computed(ledger, operation, result, channel)
    if writer is None or not result.numel():
        ledger.record(result, None)
        return
    call = ledger.written(writer, result.shape[channel], plain=layer is not None)
    labels = torch.arange(call.base, call.base + call.rows)
    if not call.plain:
        ledger.escape(labels, f"the weight of `{writer}` is computed from other parameters")
    shape = [1] * result.dim()
    shape[channel] = call.rows
    ledger.record(result, Value((labels.float().view(shape).expand(result.shape),)))


def _computed(ledger: Ledger, operation: Operation, result: Tensor, channel: int) -> str | None:
    """Return the running Linear or Conv layer if the result can be its output, though its weight is not a parameter."""
    module = ledger.modules.get(operation.where)
    if not isinstance(module, WEIGHT_LAYERS):
        return None
    rows = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    return operation.where if result.shape[channel] == rows else None


def read(ledger: Ledger, layer: str, value: Value, channel: int) -> None:
    """Note which unit each input column of a layer reads; units that share a column escape."""
    columns: list[Tensor] = []
    for plane in value.planes:
        dim = channel % plane.dim()
        high, mixed = along(plane, tuple(d for d in range(plane.dim()) if d != dim))
        shape = [plane.shape[d] if d == dim else 1 for d in range(plane.dim())]
        if bool(mixed.any()):
            small = compact(plane)
            several = torch.unique(small[torch.broadcast_to(mixed, small.shape)]).to(torch.int64)
            ledger.escape(several[several > 0], f"`{layer}` reads it through a column that also reads other units")
        labels = torch.where(mixed, -1.0, high).expand(shape)
        columns.append(line(labels, dim))
    for labels in columns:
        raw = labels[(labels > 0) & (ledger.call_of(labels.clamp(min=0)) >= 0)]
        ledger.escape(raw, f"`{layer}` also reads it before its activation")
    if len(columns) > 1:
        stacked = torch.stack(columns)
        shared = (stacked != 0).sum(0) > 1
        if bool(shared.any()):
            first = stacked[:, int(shared.nonzero()[0])]
            partners = [ledger.owner(int(label)) for label in first if label > 0]
            for labels in columns:
                hit = labels[shared & (labels > 0)]
                if hit.numel():
                    own = ledger.owner(int(hit[0]))
                    others = [name for name in partners if name != own] or partners
                    what = f"`{others[0]}`" if others else "other units"
                    ledger.escape(hit, f"`{layer}` reads it combined with {what}")
    for labels in columns:
        ledger.reads.append(Read(layer, labels))
