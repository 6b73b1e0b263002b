"""Which parameters of a network the methods on whole weights act on, and the values that they had at the start."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from plasticity.groups import unwrap
from plasticity.measures.scalars import working_type
from plasticity.surgery.removal import Removal

Kind = Literal["weight", "bias", "norm", "other"]
"""What a parameter is.

"weight" and "bias": of Linear, convolutions (transposed ones too), recurrent layers, and attention's projections.
"norm": scale and shift of a normaliser. "other": the rest, such as embeddings, class tokens, PReLU's slopes, and what
parametrised weights are computed from.
"""
WEIGHT_KINDS: tuple[Kind, ...] = ("weight",)
NORM_KINDS: tuple[Kind, ...] = ("norm",)
LAYER_KINDS: tuple[Kind, ...] = ("weight", "bias")
UNNORMALISED_KINDS: tuple[Kind, ...] = ("weight", "bias", "other")
ALL_KINDS: tuple[Kind, ...] = ("weight", "bias", "norm", "other")

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.MultiheadAttention, nn.RNNBase)
_NORMALISERS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_BIASES = ("bias", "in_proj_bias", "bias_k", "bias_v")


class Entry(NamedTuple):
    """A parameter and where it is.

    Attributes:
        name: Qualified name.
        kind: What it is.
        module: The module that owns it.
        key: Its name there.
        parameter: The parameter.
    """

    name: str
    kind: Kind
    module: nn.Module
    key: str
    parameter: nn.Parameter


def trainable(
    model: nn.Module, kinds: Collection[Kind] = ALL_KINDS, spared: frozenset[Tensor] = frozenset()
) -> list[Entry]:
    """Return the parameters of some kinds that learn, each once, in the order of the modules.

    Frozen parameters (`requires_grad` is False) and lazy ones without a shape are left out.

    Args:
        model: The network.
        kinds: Which kinds.
        spared: Parameters that are left out, too.
    """
    found: dict[int, Entry] = {}
    for prefix, module in unwrap(model).named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and not is_lazy(parameter) and id(parameter) not in found:
                name = f"{prefix}.{key}" if prefix else key
                found[id(parameter)] = Entry(name, _kind(module, key), module, key, parameter)
    return [entry for entry in found.values() if entry.kind in kinds and entry.parameter not in spared]


def _kind(module: nn.Module, key: str) -> Kind:
    if isinstance(module, _NORMALISERS):
        return "norm"
    if isinstance(module, _LAYERS):
        recurrent = isinstance(module, nn.RNNBase)
        if key in _WEIGHTS or (recurrent and key.startswith("weight_")):
            return "weight"
        if key in _BIASES or (recurrent and key.startswith("bias_")):
            return "bias"
    return "other"


def as_matrices(entry: Entry) -> Tensor:
    """Return a weight as the linear maps that it applies; `from_matrices` is the way back.

    Args:
        entry: A weight of two or more dimensions.

    Returns:
        (positions, groups, out, in): one map for each position of a kernel and each group of a convolution.
    """
    weight = entry.parameter.detach()
    groups = int(getattr(entry.module, "groups", 1))
    parts = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).movedim(-1, 0)
    return parts.transpose(-1, -2) if isinstance(entry.module, _TRANSPOSED) else parts


def from_matrices(entry: Entry, matrices: Tensor) -> Tensor:
    """Return matrices laid out as `as_matrices` does in the weight's own shape."""
    parts = matrices.transpose(-1, -2) if isinstance(entry.module, _TRANSPOSED) else matrices
    return parts.movedim(0, -1).reshape(entry.parameter.shape)


class InitialValues(Mapping[str, Tensor]):
    """The values that parameters had when they were first seen, by qualified name.

    Call `update` whenever the model may have changed: before each experience. A parameter that has grown keeps its
    initial values, and what is new takes its own from the present ones, so that a new head is not pulled to anything
    stale. One that has shrunk starts anew, unless `follow` says what was removed, and so does everything when another
    model takes the place of the one before.

    Args:
        kinds: Which parameters.
    """

    def __init__(self, kinds: Collection[Kind] = ALL_KINDS) -> None:
        self.kinds = tuple(kinds)
        self._values: dict[str, Tensor] = {}
        self._model: weakref.ref[nn.Module] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def update(self, model: nn.Module, spared: frozenset[Tensor] = frozenset()) -> list[Entry]:
        """Take in what is new in a model; returns its parameters, each of which has initial values now.

        Args:
            model: The network.
            spared: Parameters that are left out.
        """
        network = unwrap(model)
        if self._model is not None and self._model() is not network:
            self._values = {}
        self._model = weakref.ref(network)
        entries = trainable(network, self.kinds, spared)
        self._values = {entry.name: grown(self._values.get(entry.name), entry.parameter) for entry in entries}
        return entries

    def follow(self, removal: Removal) -> None:
        """Go along with units that were removed physically: what is left keeps its initial values."""
        self._values = {name: removal.left_of(name, value) for name, value in self._values.items()}

    def renew(self, model: nn.Module, names: Collection[str]) -> None:
        """Take the present values of some parameters for their initial ones: they were drawn anew."""
        parameters = dict(unwrap(model).named_parameters())
        for name in names:
            if name in self._values:
                self._values[name] = parameters[name].detach().clone()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the values by name."""
        return {name: value.clone() for name, value in self._values.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over values that `state_dict` returned."""
        self._values = {name: value.clone() for name, value in state.items()}
        self._model = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}


def grown(before: Tensor | None, now: Tensor) -> Tensor:
    """Return values kept for a tensor that may have grown: what is new is filled from the tensor itself.

    Args:
        before: Values kept so far, or None.
        now: The tensor as it is.

    Returns:
        Of the shape and on the device of `now`, never sharing its memory.
    """
    if before is None or before.dim() != now.dim():
        return now.detach().clone()
    if before.shape == now.shape:
        return before.to(now.device)
    if any(old > new for old, new in zip(before.shape, now.shape, strict=True)):
        return now.detach().clone()
    values = now.detach().clone()
    values[tuple(slice(length) for length in before.shape)] = before.to(values)
    return values


def lengths(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the Euclidean norm of each tensor, 0-dim; float32 of those in half precision, in which it may overflow."""
    if all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors):
        return list(torch._foreach_norm(list(tensors)))
    wide = [torch.promote_types(tensor.dtype, torch.float32) for tensor in tensors]
    return [torch.linalg.vector_norm(each, dtype=dtype) for each, dtype in zip(tensors, wide, strict=True)]


def total_norm(tensors: Collection[Tensor]) -> Tensor:
    """Return the Euclidean norm of tensors taken as one vector, 0-dim; 0 where there are none."""
    if not tensors:
        return torch.zeros(())
    norms = lengths(list(tensors))
    total: Tensor = torch.stack([norm.to(working_type(norm.device)) for norm in norms]).norm()
    return total
