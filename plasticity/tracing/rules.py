"""How each kind of operation moves units from its inputs to its outputs.

A rule gets the ledger, the call and its results, and records what the results depend on. Whatever has no rule is taken
to mix everything: its inputs' units escape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from plasticity.tracing.labels import Norm, Plane, Value, along, compact, line, overlay
from plasticity.tracing.ledger import Ledger, Read


@dataclass
class Operation:
    """One call of a PyTorch operator.

    Attributes:
        function: The operator.
        name: Its name without overload and in-place mark, such as "add".
        args: Positional arguments.
        kwargs: Keyword arguments.
        before: What each tensor argument depended on before the call, in the order of `tensors(args, kwargs)`.
        result: What it returned.
        where: Qualified name of the module that was running, for messages.
    """

    function: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    before: list[Value | None]
    result: Any
    where: str

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operator's schema."""
        for position, declared in enumerate(self.function._schema.arguments):
            if declared.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, declared.default_value if default is None else default)
        return default

    def place(self) -> str:
        """Name the operation and the module it runs in."""
        return f"`{self.name}`" + (f" in `{self.where}`" if self.where else "")


Rule = Callable[[Ledger, Operation], None]
RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), function))
        return function

    return register


def tensors(*trees: Any) -> list[Tensor]:
    """Return the tensors in nested arguments, in order."""
    return [leaf for leaf in tree_flatten(trees)[0] if isinstance(leaf, Tensor)]


def _merged_norms(values: Sequence[Value | None]) -> dict[int, Norm]:
    norms: dict[int, Norm] = {}
    for value in values:
        if value is not None:
            norms.update(value.norms)
    return norms


def _results(operation: Operation) -> Iterator[Tensor]:
    yield from tensors(operation.result)


def mix(ledger: Ledger, operation: Operation, reason: str | None = None) -> None:
    """Let every unit of the inputs escape; the results carry none."""
    for value in operation.before:
        if value is not None:
            ledger.escape(value.labels(), reason or f"{operation.place()} may mix it with other units")
    for result in _results(operation):
        ledger.record(result, None)


# --- data movement ---------------------------------------------------------------------------------------------------

_RESHAPES = {"view", "_unsafe_view", "_reshape_alias"}


@rule(
    "view _unsafe_view _reshape_alias reshape permute transpose t expand slice select unsqueeze squeeze cat stack "
    "split split_with_sizes unsafe_split unsafe_chunk chunk unbind constant_pad_nd reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d flip roll repeat repeat_interleave index_select index "
    "gather pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col unfold upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d diagonal movedim narrow rot90 tril triu swapaxes"
)
def move(ledger: Ledger, operation: Operation) -> None:
    """Run the same movement on the label planes."""
    everything = tensors(operation.args, operation.kwargs)
    data = {id(tensor) for tensor in tensors(operation.args[:1])}
    values = {id(tensor): value for tensor, value in zip(everything, operation.before, strict=True)}
    if any(value is not None and id_ not in data for id_, value in values.items()):
        mix(ledger, operation, f"its value chooses elements ({operation.place()})")
        return
    depth = max((len(value.planes) for value in values.values() if value is not None), default=0)
    outputs = list(_results(operation))
    planes: list[list[Plane]] = [[] for _ in outputs]
    for layer in range(depth):

        def label(leaf: Any, layer: int = layer) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if id(leaf) not in data:
                return leaf.cpu()
            value = values[id(leaf)]
            if value is None or layer >= len(value.planes):
                return torch.zeros((), dtype=torch.float32).expand(leaf.shape)
            return value.planes[layer]

        args, kwargs = tree_map(label, operation.args), tree_map(label, operation.kwargs)
        if operation.name in _RESHAPES:
            moved = args[0].reshape(outputs[0].shape)
        elif operation.name == "constant_pad_nd":
            moved = torch.constant_pad_nd(args[0], args[1], 0)
        else:
            moved = operation.function(*args, **kwargs)
        for kept, plane in zip(planes, tensors(moved), strict=True):
            kept.append(plane)
    norms = _merged_norms(operation.before)
    for output, kept in zip(outputs, planes, strict=True):
        ledger.record(output, Value(overlay(kept), norms))


@rule("clone detach alias contiguous lift lift_fresh lift_fresh_copy _to_copy to _conj resolve_conj resolve_neg")
def copy(ledger: Ledger, operation: Operation) -> None:
    """The result shows the same elements in the same order."""
    source = tensors(operation.args)[0]
    for result in _results(operation):
        if result.shape == source.shape:
            ledger.parameters.alias(source, result)
            ledger.record(result, operation.before[0])


# --- element by element ----------------------------------------------------------------------------------------------


def pointwise(ledger: Ledger, operation: Operation) -> None:
    """Each result element depends on the elements at its own position."""
    values = operation.before
    if operation.name == "copy":
        values = [None, *operation.before[1:]]
    norms = _merged_norms(values)
    for result in _results(operation):
        planes = [
            torch.broadcast_to(plane, result.shape) for value in values if value is not None for plane in value.planes
        ]
        ledger.record(result, Value(overlay(planes), norms))


_UNTAGGED = (
    "copy native_dropout _fused_dropout dropout where rrelu_with_noise rrelu_with_noise_functional hardswish "
    "hardsigmoid log_sigmoid_forward _prelu_kernel threshold hardshrink softshrink lerp nan_to_num masked_fill"
)
RULES.update(dict.fromkeys(_UNTAGGED.split(), pointwise))


@rule(
    "zero fill zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones "
    "new_empty new_full new_empty_strided bernoulli normal uniform exponential random"
)
def constant(ledger: Ledger, operation: Operation) -> None:
    """The result's values do not depend on the input's values."""
    if operation.name == "bernoulli" and not operation.function._schema.name.endswith("_"):
        mix(ledger, operation)
        return
    for result in _results(operation):
        ledger.record(result, None)


# --- reductions and pooling ------------------------------------------------------------------------------------------


def _reduced(ledger: Ledger, plane: Plane, dims: tuple[int, ...], reason: str) -> Plane:
    """Reduce dimensions to their one label; where several units meet, they escape."""
    high, mixed = along(plane, dims)
    if bool(mixed.any()):
        small = compact(plane)
        ledger.escape(torch.unique(small[torch.broadcast_to(mixed, small.shape)]).to(torch.int64), reason)
        high = torch.where(mixed, 0.0, high)
    return high


@rule(
    "mean sum nansum amax amin max min prod var std var_mean std_mean logsumexp linalg_vector_norm norm any all argmax "
    "argmin median nanmedian count_nonzero"
)
def reduce(ledger: Ledger, operation: Operation) -> None:
    """The result depends on the units along the reduced dimensions."""
    data = tensors(operation.args)
    if len(data) > 1:  # max and min of two tensors
        pointwise(ledger, operation)
        return
    value, rank = operation.before[0], data[0].dim()
    if value is None:
        return
    dims = operation.argument("dim")
    if dims is None or dims == []:
        chosen = tuple(range(rank))
    else:
        chosen = tuple(dim % rank for dim in ([dims] if isinstance(dims, int) else dims)) if rank else ()
    keep = bool(operation.argument("keepdim", False))
    planes = []
    for plane in value.planes:
        full = plane.shape
        small = _reduced(ledger, plane, chosen, f"{operation.place()} takes it together with other units")
        shape = [1 if dim in chosen else length for dim, length in enumerate(full)]
        small = small.expand(shape)
        planes.append(
            small if keep else small.reshape([length for dim, length in enumerate(shape) if dim not in chosen])
        )
    for result in _results(operation):
        ledger.record(result, Value(overlay(torch.broadcast_to(plane, result.shape) for plane in planes), value.norms))


_POOLS = {
    name: rank
    for rank, names in {
        1: "avg_pool1d adaptive_avg_pool1d upsample_linear1d",
        2: "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
        "mkldnn_max_pool2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa fractional_max_pool2d",
        3: "max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d upsample_trilinear3d",
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
    for result in _results(operation):
        planes = []
        for plane in value.planes:
            dims = tuple(range(plane.dim() - spatial, plane.dim()))
            planes.append(torch.broadcast_to(_reduced(ledger, plane, dims, reason), result.shape))
        ledger.record(result, Value(overlay(planes), value.norms))


# --- normalisers -----------------------------------------------------------------------------------------------------


def _channels(ledger: Ledger, planes: Sequence[Plane], dim: int, name: str) -> dict[int, Norm]:
    """Note which channel of a normaliser scales each row that is written into its input."""
    norms: dict[int, Norm] = {}
    for plane in planes:
        labels = line(
            along(plane, tuple(d for d in range(plane.dim()) if d != dim))[0].expand(
                [plane.shape[d] if d == dim else 1 for d in range(plane.dim())]
            ),
            dim,
        )
        owners = ledger.call_of(labels)
        for number in torch.unique(owners[owners >= 0]).tolist():
            call = ledger.calls[number]
            channels = torch.full((call.rows,), -1, dtype=torch.int64)
            hits = (owners == number).nonzero().flatten().flip(0)  # so that the first channel wins
            channels[labels[hits] - call.base] = hits
            norms[number] = Norm(name, channels)
    return norms


@rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update "
    "_batch_norm_no_update cudnn_batch_norm miopen_batch_norm batch_norm"
)
def batch_norm(ledger: Ledger, operation: Operation) -> None:
    """Each channel is normalised by itself."""
    value = operation.before[0]
    if value is None:
        return
    result = next(_results(operation))
    reason = f"{operation.place()} normalises it together with other units"
    planes = []
    for plane in value.planes:
        dims = tuple(dim for dim in range(plane.dim()) if dim != 1)
        planes.append(torch.broadcast_to(_reduced(ledger, plane, dims, reason), result.shape))
    norms = {**value.norms, **_channels(ledger, planes, 1, operation.where)}
    ledger.record(result, Value(overlay(planes), norms))


@rule("native_layer_norm native_group_norm _fused_rms_norm layer_norm group_norm")
def mixing_norm(ledger: Ledger, operation: Operation) -> None:
    """Units are normalised together: none stays private, but it is still known who wrote which."""
    value = operation.before[0]
    if value is None:
        return
    result = next(_results(operation))
    ledger.escape(value.labels(), f"`{operation.where or operation.name}` normalises it together with other units")
    planes = []
    for plane in value.planes:
        small = compact(plane)
        planes.append(torch.where(ledger.raw(small), small, 0.0).expand(plane.shape))
    dim = result.dim() - 1
    if operation.name in ("native_group_norm", "group_norm"):
        dim = 1
    elif len(operation.argument("normalized_shape") or (0,)) > 1:
        ledger.record(result, Value(overlay(planes), value.norms))
        return
    norms = {**value.norms, **_channels(ledger, planes, dim, operation.where)}
    ledger.record(result, Value(overlay(planes), norms))


# --- weights ---------------------------------------------------------------------------------------------------------


def _read_and_write(
    ledger: Ledger, operation: Operation, x: Tensor, weight: Tensor, channel: int, transposed: bool
) -> None:
    """A layer reads its input through the columns of its weight and writes its output by rows."""
    value = operation.before[next(i for i, t in enumerate(tensors(operation.args, operation.kwargs)) if t is x)]
    result = next(_results(operation))
    names, flipped = ledger.parameters.find(weight)
    as_stored = operation.name in ("convolution", "linear") or weight.numel() == 1
    owners = [name.removesuffix(".weight") if "." in name else "" for name in names if name.split(".")[-1] == "weight"]
    layers = [name for name in owners if name in ledger.layers]
    if not layers or transposed or flipped == as_stored:
        for name in ledger.parameters.touch(weight):
            ledger.parameters.weight_uses[name] = ledger.parameters.weight_uses.get(name, 0) + 1
        what = f"a {operation.name} in `{operation.where}`" if operation.where else f"a {operation.name}"
        if value is not None:
            ledger.escape(
                value.labels(), f"it is read by {what}, whose weight is not that of a plain Linear or Conv layer"
            )
        ledger.record(result, None)
        return
    for name in names:
        ledger.parameters.weight_uses[name] = ledger.parameters.weight_uses.get(name, 0) + 1
    layer = layers[0]
    if value is not None:
        read(ledger, layer, value, channel)
    rows = ledger.written(layer, result.shape[channel])
    shape = [1] * result.dim()
    shape[channel] = rows.rows
    plane = torch.arange(rows.base, rows.base + rows.rows, dtype=torch.float32).view(shape).expand(result.shape)
    ledger.record(result, Value((plane,)))


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
                    ledger.escape(hit, f"`{layer}` reads it combined with `{others[0]}`")
    for labels in columns:
        ledger.reads.append(Read(layer, labels))


@rule("convolution")
def convolution(ledger: Ledger, operation: Operation) -> None:
    """Conv1d, Conv2d, Conv3d; transposed ones are not units' layers."""
    x, weight = operation.args[0], operation.args[1]
    _read_and_write(ledger, operation, x, weight, 1, bool(operation.argument("transposed")))


@rule("addmm mm linear")
def matrix_product(ledger: Ledger, operation: Operation) -> None:
    """A Linear: input times transposed weight. Any other matrix product mixes units."""
    first = 1 if operation.name == "addmm" else 0
    x, weight = operation.args[first], operation.args[first + 1]
    if operation.name == "addmm" and operation.before[0] is not None:
        mix(ledger, operation)
        return
    position = next(i for i, t in enumerate(tensors(operation.args, operation.kwargs)) if t is weight)
    if operation.before[position] is not None:
        mix(ledger, operation)
        return
    _read_and_write(ledger, operation, x, weight, -1, False)


# --- values that leave the tensors -----------------------------------------------------------------------------------


@rule("_local_scalar_dense item is_nonzero equal nonzero masked_select unique _unique2 unique_dim unique_consecutive")
def into_python(ledger: Ledger, operation: Operation) -> None:
    """A value that Python or a shape can depend on."""
    mix(ledger, operation, f"its value steers the program ({operation.place()})")
