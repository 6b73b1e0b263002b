"""The same network with layer normalisation before every activation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from plasticity.architecture.crelu import CReLU
from plasticity.architecture.rewriting import (
    Example,
    activation_module,
    check_outputs,
    note,
    replace,
    units_and_copy,
)
from plasticity.errors import UserError
from plasticity.groups import UnitGroup, layer


def with_layer_norm(model: nn.Module, example: Example) -> nn.Module:
    """Copy a network with layer normalisation between every writer and its activation.

    Over the features of a Linear it is `nn.LayerNorm`; over channels and positions of a convolution,
    `nn.GroupNorm(1, channels)`. Each has a scale and a shift for every unit: 2 parameters a unit. Batch normalisation
    in that place gives way to it, at the same number of parameters; layer, group, instance and RMS normalisation stay.
    Weights stay as they are.

    Normalisation over units couples them, so that no unit of these groups is private any more: methods that change
    outgoing weights pass them over.

    Args:
        model: The network.
        example: An input, or a tuple of its positional inputs; a few samples are enough.

    Returns:
        A changed copy; `plasticity.architecture.changes` tells what was done.

    Raises:
        UserError: If an activation without a normaliser is a function called in a forward pass, or one module
            activates several groups.

    Source: as a remedy for lost plasticity, Lyle et al. 2024, arXiv 2402.18762.
    """
    units, changed = units_and_copy(model, example)
    replaced: dict[nn.Module, nn.Module] = {}
    activated: dict[nn.Module, str] = {}
    inserted = 0
    for group in units:
        bare = False
        for write in group.writes:
            norm = None if write.norm is None else changed.get_submodule(write.norm)
            bare = bare or norm is None
            if isinstance(norm, _BatchNorm) and norm not in replaced:
                weight = layer(changed, write.layer).weight
                replaced[norm] = _norm(group, write.layer, norm.num_features, changed, weight).train(norm.training)
        if not bare:
            continue
        module = activation_module(changed, group, also=CReLU)
        if module in activated:
            raise UserError(
                f"one module activates both `{activated[module]}` and `{group.name}`: each needs a normaliser of its "
                "own, so give each an activation module of its own"
            )
        activated[module] = group.name
        weight = layer(changed, group.name.split("#")[0]).weight
        norm = _norm(group, group.producers[0], group.size, changed, weight)
        replaced[module] = nn.Sequential(norm, module).train(module.training)
        inserted += 1
    for old, new in replaced.items():
        replace(changed, old, new)
    check_outputs(changed, model, example, "layer-norm")
    exchanged = len(replaced) - inserted
    note(changed, "layer-norm", model, f"{inserted} normalisers inserted, {exchanged} put in place of others")
    return changed


def _norm(group: UnitGroup, writer: str, size: int, model: nn.Module, like: torch.Tensor | nn.Module) -> nn.Module:
    assert isinstance(like, torch.Tensor)
    last = group.site is not None and group.site.dim == -1
    if last and isinstance(layer(model, writer), nn.Linear):
        return nn.LayerNorm(size, device=like.device, dtype=like.dtype)
    return nn.GroupNorm(1, size, device=like.device, dtype=like.dtype)
