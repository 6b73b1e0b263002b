"""Operations that take several elements together: reductions, pooling, normalisers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from plasticity.tracing.labels import Norm, Plane, Value, along, compact, line, overlay
from plasticity.tracing.ledger import Ledger
from plasticity.tracing.movement import pointwise
from plasticity.tracing.operations import Operation, reduced, rule

_NORM_MODULES = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm) + (
    (nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()
)


@rule(
    "mean sum nansum amax amin max min prod var std var_mean std_mean logsumexp linalg_vector_norm norm any all argmax "
    "argmin median nanmedian count_nonzero"
)
def reduce(ledger: Ledger, operation: Operation) -> None:
    """The result depends on the units along the reduced dimensions."""
    if any(declared.name == "other" for declared in operation.function._schema.arguments):  # max and min of two tensors
        pointwise(ledger, operation)
        return
    value, rank = operation.before[0], operation.inputs[0].dim()
    if value is None:  # only the tensor that is written to held units
        for result in operation.results:
            ledger.record(result, None)
        return
    dims = operation.argument("dim")
    if dims is None or dims == []:
        chosen = set(range(rank))
    else:
        chosen = {dim % rank for dim in ([dims] if isinstance(dims, int) else dims)} if rank else set()
    keep = bool(operation.argument("keepdim"))
    planes = []
    for plane in value.planes:
        small = reduced(ledger, plane, tuple(chosen), f"{operation.place()} takes it together with other units")
        shape = [1 if dim in chosen else length for dim, length in enumerate(plane.shape)]
        kept = [length for dim, length in enumerate(shape) if keep or dim not in chosen]
        planes.append(small.expand(shape).reshape(kept))
    for result in operation.results:
        ledger.record(
            result,
            Value(overlay(torch.broadcast_to(plane, result.shape) for plane in planes), value.norms, value.directions),
        )


_POOLS = {
    name: rank
    for rank, names in {
        1: "avg_pool1d adaptive_avg_pool1d upsample_linear1d",
        2: "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
        "mkldnn_max_pool2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
        "fractional_max_pool2d",
        3: "max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d upsample_trilinear3d "
        "fractional_max_pool3d",
    }.items()
    for name in names.split()
}


@rule(" ".join(_POOLS))
def pool(ledger: Ledger, operation: Operation) -> None:
    """Each result element depends on positions of its own channel."""
    value = operation.before[0]
    if value is None:
        return
    spatial = _POOLS[operation.name]
    reason = f"{operation.place()} takes it together with other units"
    for result in operation.results:
        planes = []
        for plane in value.planes:
            dims = tuple(range(plane.dim() - spatial, plane.dim()))
            planes.append(torch.broadcast_to(reduced(ledger, plane, dims, reason), result.shape))
        ledger.record(result, Value(overlay(planes), value.norms, value.directions))


# --- normalisers -----------------------------------------------------------------------------------------------------


def _norm(ledger: Ledger, operation: Operation) -> str | None:
    """Name the running module if it is the normaliser: of a kind PyTorch has, or the owner of what the call uses."""
    name = operation.where
    own = {f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
    used = {found for tensor in operation.inputs[1:] for found in ledger.parameters.names_of(tensor)}
    return name if isinstance(ledger.modules.get(name), _NORM_MODULES) or own & used else None


def _channels(ledger: Ledger, operation: Operation, planes: Sequence[Plane], dim: int) -> dict[int, Norm]:
    """Note which channel of a normaliser scales each row that is written into its input."""
    name = _norm(ledger, operation)
    norms: dict[int, Norm] = {}
    for plane in planes if name is not None else ():
        others = tuple(other for other in range(plane.dim()) if other != dim)
        high = along(plane, others)[0]
        labels = line(high.expand([plane.shape[d] if d == dim else 1 for d in range(plane.dim())]), dim)
        owners = ledger.call_of(labels)
        for number in torch.unique(owners[owners >= 0]).tolist():
            call = ledger.calls[number]
            channels = torch.full((call.rows,), -1, dtype=torch.int64)
            hits = (owners == number).nonzero().flatten().flip(0)  # so that the first channel wins
            channels[labels[hits] - call.base] = hits
            norms[number] = Norm(str(name), channels)
    return norms


@rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update "
    "_batch_norm_no_update cudnn_batch_norm miopen_batch_norm batch_norm"
)
def batch_norm(ledger: Ledger, operation: Operation) -> None:
    """Each channel is normalised by itself."""
    value = operation.before[0]
    if value is None or any(other is not None for other in operation.before[1:]):
        mixing_norm(ledger, operation)
        return
    result = operation.results[0]
    reason = f"{operation.place()} normalises it together with other units"
    planes = []
    for plane in value.planes:
        dims = tuple(dim for dim in range(plane.dim()) if dim != 1)
        planes.append(torch.broadcast_to(reduced(ledger, plane, dims, reason), result.shape))
    norms = {**value.norms, **_channels(ledger, operation, planes, 1)}
    ledger.record(result, Value(overlay(planes), norms, _unknown(value)))


@rule("native_layer_norm native_group_norm _fused_rms_norm layer_norm group_norm rms_norm")
def mixing_norm(ledger: Ledger, operation: Operation) -> None:
    """Units are normalised together: none stays private, but it is still known who wrote which."""
    reason = f"`{operation.where or operation.name}` normalises it together with other units"
    for value in operation.before:
        if value is not None:
            ledger.escape(value.labels(), reason)
    result, value = operation.results[0], operation.before[0]
    planes = [] if value is None else _written(ledger, value)
    norms, directions = ({}, {}) if value is None else (dict(value.norms), _unknown(value))
    if operation.argument("normalized_shape") is None:
        norms.update(_channels(ledger, operation, planes, 1))
    elif len(operation.argument("normalized_shape")) == 1:
        norms.update(_channels(ledger, operation, planes, result.dim() - 1))
    ledger.record(result, Value(overlay(planes), norms, directions))


@rule("_softmax _log_softmax softmax log_softmax")
def softmax(ledger: Ledger, operation: Operation) -> None:
    """Units are normalised together, without parameters."""
    value = operation.before[0]
    if value is not None:
        ledger.escape(value.labels(), f"{operation.place()} normalises it together with other units")
        ledger.record(operation.results[0], Value(overlay(_written(ledger, value)), value.norms, value.directions))


def _unknown(value: Value) -> dict[int, int]:
    """Return the directions behind a normaliser: one that was turned before it, and its shift not, has none."""
    return dict.fromkeys(value.directions, 0)


def _written(ledger: Ledger, value: Value) -> list[Plane]:
    """Return the planes without the units of earlier activations."""
    planes = []
    for plane in value.planes:
        small = compact(plane)
        planes.append(torch.where(ledger.raw(small), small, 0.0).expand(plane.shape))
    return planes
