"""Find the hidden units of a model: who writes each, what activates it, who reads it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plasticity.groups import Consumer, Site, UnitGroup, UnitGroups, Write, unwrap
from plasticity.tracing.ledger import Ledger, SiteRecord
from plasticity.tracing.tracer import trace

__all__ = ["find_units"]


def find_units(model: nn.Module, example: Tensor | tuple[Any, ...]) -> UnitGroups:
    """Find the hidden units of a model from one forward pass.

    The pass is followed operator by operator, so that functions, in-place operations and any rearrangement of tensors
    are seen as they are executed. A group is private only where every path from its units to the output is proven to
    pass through weight columns that read that unit alone; an operation without a rule proves nothing. What holds is
    what this pass executes: a weight that it does not use makes every group watch-only. What other threads compute in
    it is not seen, nor what a program would do that numbers from the input steer otherwise.

    Train or eval mode, buffers, gradients and the random state are left as they were.

    Args:
        model: The network; `torch.compile`, DataParallel and DistributedDataParallel wrappers are looked through.
        example: An input on the model's device, or a tuple of its positional inputs. A few samples are enough.

    Returns:
        The groups in execution order; printing them shows a table.

    Raises:
        TraceError: If the forward pass fails or cannot be followed; the message names the module and the operation.
    """
    model = unwrap(model)
    with torch.inference_mode(False):
        return assemble(trace(model, example))


def assemble(ledger: Ledger) -> UnitGroups:
    """Turn the record of a trace into groups."""
    units_of: dict[tuple[int, int], set[int]] = {}
    for site in ledger.sites:
        for write in site.writes:
            for unit, row in enumerate(write.rows.tolist()):
                if row >= 0:
                    units_of.setdefault((write.call, row), set()).add(site.base + unit)
    groups: list[UnitGroup] = []
    names: dict[str, int] = {}
    for site in ledger.sites:
        calls = [ledger.calls[write.call] for write in site.writes]
        name = calls[0].layer
        names[name] = names.get(name, 0) + 1
        consumers = _consumers(ledger, site)
        reason = _obstacle(ledger, site, units_of, consumers)
        writes = []
        for call, write in zip(calls, site.writes, strict=True):
            rows = write.rows if call.plain else torch.full_like(write.rows, -1)
            writes.append(Write(call.layer, rows, write.norm, write.norm_rows, write.direction))
        groups.append(
            UnitGroup(
                name=name if names[name] == 1 else f"{name}#{names[name]}",
                size=site.size,
                activation=site.activation,
                producers=tuple(dict.fromkeys(call.layer for call in calls)),
                norm=writes[0].norm,
                consumers=consumers,
                private=reason is None,
                reason=reason,
                writes=tuple(writes),
                site=Site(site.module, site.call, site.function, site.dim, site.unit_of),
            )
        )
    return UnitGroups(groups, skipped=ledger.skipped, outputs=ledger.outputs)


def _obstacle(
    ledger: Ledger, site: SiteRecord, units_of: dict[tuple[int, int], set[int]], consumers: tuple[Consumer, ...]
) -> str | None:
    """Say what keeps a group from being private, or return None."""
    for unit in range(site.base, site.base + site.size):
        if unit in ledger.escapes:
            return ledger.escapes[unit]
    if site.partial:
        return site.partial
    for write in site.writes:
        call = ledger.calls[write.call]
        for row in write.rows[write.rows >= 0].tolist():
            if call.base + row in ledger.escapes:
                return ledger.escapes[call.base + row]
            others = units_of[write.call, row]
            if min(others) < site.base or max(others) >= site.base + site.size:
                return f"`{call.layer}` feeds several activations"
            if len(others) > 1:
                return f"one row of `{call.layer}` writes several of its units"
    if bool((torch.stack([write.rows for write in site.writes]).amax(0) < 0).any()):
        return "some of its units are written by no Linear or Conv layer"
    changed = [(consumer.layer, "weight") for consumer in consumers]
    for write in site.writes:
        changed += [(ledger.calls[write.call].layer, part) for part in ("weight", "bias")]
        if write.norm is not None:
            changed += [(write.norm, part) for part in ("weight", "bias", "running_mean", "running_var")]
    for layer, part in changed:
        name = f"{layer}.{part}" if layer else part
        if ledger.parameters.uses.get(name, 0) > 1:
            return f"the {part} of `{layer}` is used more than once"
        tied = ledger.parameters.tied(name)
        if tied:
            return f"the {part} of `{layer}` is also `{tied}`"
    idle = ledger.idle()
    if idle:
        return f"`{idle.removesuffix('.weight')}` is not used by this example and may read it"
    if not consumers:
        return "no layer reads it"
    return None


def _consumers(ledger: Ledger, site: SiteRecord) -> tuple[Consumer, ...]:
    """Collect, layer by layer in execution order, the columns that read each unit."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for read in ledger.reads:
        columns = ((read.labels >= site.base) & (read.labels < site.base + site.size)).nonzero().flatten()
        if len(columns):
            found.setdefault(read.layer, []).append((read.labels[columns] - site.base, columns))
    consumers = []
    for layer, parts in found.items():
        pairs = torch.unique(torch.cat([torch.stack(part) for part in parts], dim=1), dim=1)
        units, columns = pairs[0], pairs[1]
        counts = torch.bincount(units, minlength=site.size)
        width = int(counts.max())
        matrix = torch.full((site.size, width), -1, dtype=torch.int64)
        starts = counts.cumsum(0) - counts
        matrix[units, torch.arange(len(units)) - starts[units]] = columns
        consumers.append(Consumer(layer, width, matrix))
    return tuple(consumers)
