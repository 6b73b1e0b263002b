"""Operations that only move elements, or work on each element by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from plasticity.tracing.directions import factors, merged_directions
from plasticity.tracing.labels import Plane, Value, compact, overlay, varying_dims
from plasticity.tracing.ledger import Ledger
from plasticity.tracing.operations import RULES, Operation, merged_norms, mix, rule, tensors

_RESHAPES = {"view", "_unsafe_view", "_reshape_alias", "reshape"}


@rule(
    "view _unsafe_view _reshape_alias reshape permute transpose t expand slice select unsqueeze squeeze cat stack "
    "split split_with_sizes unsafe_split unsafe_chunk chunk unbind constant_pad_nd reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d flip roll repeat index_select index gather "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col unfold upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d diagonal movedim narrow rot90 tril triu swapaxes"
)
def move(ledger: Ledger, operation: Operation) -> None:
    """Run the same movement on the label planes."""
    data = len(tensors(operation.args[:1]))  # the tensors behind them choose elements
    if any(value is not None for value in operation.before[data:]):
        mix(ledger, operation, f"its value chooses elements ({operation.place()})")
        return
    if _input_chooses_units(ledger, operation, operation.before[:data], operation.inputs[data:]):
        mix(ledger, operation, f"the input chooses among units ({operation.place()})")
        return
    outputs = operation.results
    if operation.name in _RESHAPES and outputs[0].numel() != operation.inputs[0].numel():  # seen as another data type
        mix(ledger, operation)
        return
    values = operation.before[:data]
    depth = max(len(value.planes) for value in values if value is not None)
    planes: list[list[Plane]] = [[] for _ in outputs]
    for layer in range(depth):
        sources = iter(
            value.planes[layer]
            if value is not None and layer < len(value.planes)
            else torch.zeros((), dtype=torch.float32).expand(tensor.shape)
            for tensor, value in zip(operation.inputs[:data], values, strict=True)
        )

        def label(leaf: Any, sources: Any = sources) -> Any:
            return next(sources) if isinstance(leaf, Tensor) else leaf

        def on_host(leaf: Any) -> Any:
            return leaf.cpu() if isinstance(leaf, Tensor) else leaf

        first, *others = operation.args
        args, kwargs = (tree_map(label, first), *tree_map(on_host, others)), tree_map(on_host, operation.kwargs)
        if operation.name in _RESHAPES:
            moved = args[0].reshape(outputs[0].shape)
        elif operation.name == "constant_pad_nd":
            moved = torch.constant_pad_nd(args[0], args[1], 0)
        else:
            moved = operation.function(*args, **kwargs)
        for kept, plane in zip(planes, tensors(moved), strict=True):
            kept.append(plane)
    norms = merged_norms(values)
    directions = merged_directions(ledger, values)
    for output, kept in zip(outputs, planes, strict=True):
        ledger.record(output, Value(overlay(kept), norms, directions))


def _input_chooses_units(
    ledger: Ledger, operation: Operation, values: Sequence[Value | None], others: Sequence[Tensor]
) -> bool:
    """Say whether another input could give other units of the same tensor: this pass then shows one choice of many."""
    if not any(ledger.holds_data(tensor) for tensor in others):
        return False
    varying = set(varying_dims(plane for value in values if value is not None for plane in value.planes))
    if operation.name in ("gather", "index_select"):
        return int(operation.args[1]) % operation.inputs[0].dim() in varying
    if operation.name != "index":
        return bool(varying)
    dim = 0
    chosen: set[int] = set()
    for index in operation.args[1]:
        width = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        if index is not None and ledger.holds_data(index):
            chosen.update(range(dim, dim + width))
        dim += width
    return bool(chosen & varying)


@rule("clone detach alias contiguous lift lift_fresh lift_fresh_copy _to_copy to _conj resolve_conj resolve_neg")
def copy(ledger: Ledger, operation: Operation) -> None:
    """The result shows the same elements in the same order."""
    for result in operation.results:
        ledger.record(result, operation.before[0])


def pointwise(ledger: Ledger, operation: Operation) -> None:
    """Each result element depends on the elements at its own position."""
    values = operation.before
    if operation.name in ("copy", "fill"):  # in place: what was there before is gone
        values = [None, *operation.before[1:]]
    _combined_with_data(ledger, operation, values)
    norms, directions = merged_norms(values), merged_directions(ledger, values, factors(operation))
    for result in operation.results:
        planes = [
            torch.broadcast_to(plane, result.shape) for value in values if value is not None for plane in value.planes
        ]
        ledger.record(result, Value(overlay(planes), norms, directions))


_SCALES = {"mul", "div", "copy", "fill", "masked_fill"}


def _combined_with_data(ledger: Ledger, operation: Operation, values: Sequence[Value | None]) -> None:
    """Let units escape that are added to something else that depends on the input: they share their columns with it.

    A product is another matter: what a unit is scaled by is not seen past the unit.
    """
    if operation.name in _SCALES:
        return
    for i, (tensor, value) in enumerate(zip(operation.inputs, values, strict=True)):
        others = [other for k, other in enumerate(values) if k != i and other is not None]
        if not others or not ledger.holds_data(tensor):
            continue
        shape = torch.broadcast_shapes(tensor.shape, *(plane.shape for other in others for plane in other.planes))
        alone = torch.ones((), dtype=torch.bool)
        for plane in value.planes if value is not None else ():
            alone = alone & (compact(plane) == 0)
        if not bool(alone.any()):
            continue
        for other in others:
            for plane in other.planes:
                labels = torch.where(
                    alone, compact(plane) if alone.dim() == 0 else torch.broadcast_to(plane, shape), 0.0
                )
                found = torch.unique(labels).to(torch.int64)
                ledger.escape(found[found > 0], f"{operation.place()} combines it with something that is no unit")


# Of what PyTorch tags as pointwise, whatever is not named in a rule is; these it does not tag.
_UNTAGGED = (
    "copy native_dropout _fused_dropout dropout where rrelu_with_noise rrelu_with_noise_functional hardswish "
    "hardsigmoid floor_divide log_sigmoid_forward _prelu_kernel threshold hardshrink softshrink lerp nan_to_num "
    "masked_fill fill"
)
RULES.update(dict.fromkeys(_UNTAGGED.split(), pointwise))


@rule(
    "zero zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty "
    "new_full new_empty_strided uniform exponential random cauchy geometric log_normal"
)
def constant(ledger: Ledger, operation: Operation) -> None:
    """The result's values do not depend on the input's values."""
    for result in operation.results:
        ledger.record(result, None)


@rule("bernoulli normal")
def sample(ledger: Ledger, operation: Operation) -> None:
    """A tensor is filled with random numbers, or they are drawn around the values of a tensor."""
    if operation.in_place and len(operation.inputs) == 1:
        constant(ledger, operation)
    else:
        mix(ledger, operation)


@rule("_local_scalar_dense item is_nonzero equal nonzero masked_select unique _unique2 unique_dim unique_consecutive")
def into_python(ledger: Ledger, operation: Operation) -> None:
    """A value that Python or a shape can depend on."""
    mix(ledger, operation, f"its value steers the program ({operation.place()})")
