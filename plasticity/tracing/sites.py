"""An activation turns written rows into hidden units."""

from __future__ import annotations

import torch
from torch import Tensor

from plasticity.tracing.labels import Value, line, overlay, varying_dims
from plasticity.tracing.ledger import Ledger, SiteRecord, WriteRecord


def open_site(
    ledger: Ledger, result: Tensor, value: Value, activation: str, module: str, call: int, *, function: bool
) -> None:
    """Record that an activation function was applied.

    Args:
        ledger: The record of the trace.
        result: What the activation returned.
        value: What its input depended on.
        activation: Its name.
        module: Qualified name of the innermost running module.
        call: How many activation functions that module has called before.
        function: Whether it must be watched as a function call, not as the output of `module`.
    """
    raw_masks = [ledger.raw(plane) for plane in value.planes]
    if not any(bool(mask.any()) for mask in raw_masks):
        ledger.record(result, value)  # units of an earlier site, activated once more
        return
    dims = varying_dims(value.planes)
    if len(dims) > 1:
        _skip(ledger, result, value, activation, module, "along several dimensions")
        return
    dim = dims[0] if dims else None
    lines = torch.stack([line(plane, dim) for plane in value.planes])
    unit_of, size = _units(lines)
    if len(torch.unique(torch.bincount(unit_of))) > 1:
        _skip(ledger, result, value, activation, module, "at some places more often than others")
        return
    written_here = ledger.call_of(lines) >= 0
    has_raw = written_here.any(0)
    base = ledger.mint(size)
    site = SiteRecord(
        base=base,
        size=size,
        activation=activation,
        module=module,
        call=call,
        function=function,
        dim=None if dim is None else dim - result.dim(),
        unit_of=_layout(unit_of, size),
        writes=_writes(ledger, value, lines, written_here, unit_of, size),
        partial=None,
    )
    ledger.sites.append(site)
    planes = [_spread((unit_of + base).float().where(has_raw, 0.0), result, dim)]
    for labels, is_raw in zip(lines, written_here, strict=True):
        older = labels[has_raw & ~is_raw & (labels > 0)]
        if older.numel():
            ledger.escape(older, f"it is added to `{ledger.owner(base)}` before the next activation")
            site.partial = f"a unit of `{ledger.owner(int(older[0]))}` is added to each before the activation"
        kept = torch.where(has_raw, 0, labels)
        if bool(kept.any()):
            site.partial = (
                site.partial
                or f"some of its units are those of `{ledger.owner(int(kept[kept > 0][0]))}`, activated once more"
            )
            planes.append(_spread(kept.float(), result, dim))
    ledger.record(result, Value(overlay(planes)))


def _writes(
    ledger: Ledger, value: Value, lines: Tensor, written_here: Tensor, unit_of: Tensor, size: int
) -> list[WriteRecord]:
    """Collect which rows write each unit: one record for each call, more where it writes a unit by several rows."""
    records: list[WriteRecord] = []
    for labels, is_raw in zip(lines, written_here, strict=True):
        for number in torch.unique(ledger.call_of(labels[is_raw])).tolist():
            here = is_raw & (ledger.call_of(labels) == number)
            rows = torch.full((size,), -1, dtype=torch.int64)
            rows[unit_of[here]] = labels[here] - ledger.calls[number].base
            for record in records:
                both = (record.rows >= 0) & (rows >= 0)
                if record.call == number and bool((record.rows == rows)[both].all()):
                    record.rows = torch.maximum(record.rows, rows)
                    break
            else:
                records.append(WriteRecord(number, rows, None, None, value.directions.get(number, 1)))
    for record in records:
        norm = value.norms.get(record.call)
        if norm is not None:
            channels = torch.where(record.rows >= 0, norm.channels[record.rows.clamp(min=0)], -1)
            if bool((channels >= 0).any()):
                record.norm, record.norm_rows = norm.name, channels
    return sorted(records, key=lambda record: record.call)


def _skip(ledger: Ledger, result: Tensor, value: Value, activation: str, module: str, where: str) -> None:
    """Leave out an activation whose units cannot be told apart along one dimension."""
    labels = value.labels()
    layer = ledger.owner(int(labels[ledger.call_of(labels) >= 0][0]))
    place = f"{activation} in `{module}`" if module else activation
    ledger.skipped.append(f"{place} after `{layer}`: its units lie {where}")
    ledger.escape(labels, f"{place} sees it {where}")
    ledger.record(result, None)


def _units(lines: Tensor) -> tuple[Tensor, int]:
    """Number the units along a line in order of appearance: equal labels are one unit, unlabelled places one each."""
    length = lines.shape[1]
    blank = torch.where((lines != 0).any(0), 0, torch.arange(length) + 1)
    _, inverse = torch.unique(torch.cat([lines, blank[None]]), dim=1, return_inverse=True)
    size = int(inverse.max()) + 1
    first = torch.full((size,), length, dtype=torch.int64).scatter_reduce(0, inverse, torch.arange(length), "amin")
    rank = torch.empty(size, dtype=torch.int64)
    rank[first.argsort()] = torch.arange(size)
    return rank[inverse], size


def _layout(unit_of: Tensor, size: int) -> Tensor | None:
    """Return None for equal consecutive runs, the common case, else the unit of each index."""
    if len(unit_of) % size == 0 and bool((unit_of == torch.arange(size).repeat_interleave(len(unit_of) // size)).all()):
        return None
    return unit_of


def _spread(labels: Tensor, like: Tensor, dim: int | None) -> Tensor:
    shape = [1] * like.dim()
    if dim is not None:
        shape[dim] = len(labels)
    return labels.view(shape).expand(like.shape)
