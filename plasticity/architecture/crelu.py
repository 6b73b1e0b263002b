"""Concatenated ReLU, at the number of parameters that the network had."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from plasticity.architecture.rewriting import (
    Example,
    activation_module,
    changes,
    check_outputs,
    note,
    parameter_count,
    replace,
    units_and_copy,
)
from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, layer, unwrap
from plasticity.units import find_units

Widths = Callable[[Sequence[int]], list[int]]
Variant = Callable[[Any, Widths], nn.Module]
_VARIANTS: dict[type[nn.Module], Variant] = {}
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class CReLU(nn.Module):
    """Concatenated ReLU: `[relu(x), relu(-x)]`.

    Of the two halves of a unit one is above 0 unless x is exactly 0, so that a gradient always gets through.
    `find_units` sees one unit with two outputs, and counts of activity go over both: such a unit is never dead while
    its inputs are not 0.

    Args:
        dim: Dimension of the units, which becomes twice as long.

    Source: Abbas et al. 2023, arXiv 2303.07507; Shang et al. 2016, arXiv 1603.05201.
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Activate.

        Args:
            x: Any shape with n units along `dim`.

        Returns:
            The same with 2 n along `dim`: first the positive parts, then the negative ones.
        """
        return F.relu(torch.cat([x, -x], dim=self.dim))

    def extra_repr(self) -> str:
        """Return what `repr` shows."""
        return f"dim={self.dim}"


def register_crelu(kind: type[nn.Module]) -> Callable[[Variant], Variant]:
    """Say how networks of a class become networks with CReLU, where `with_crelu` cannot find out by itself.

        @register_crelu(ResNet)
        def _(network, widths):
            return ResNet(widths=widths(network.widths), activation=CReLU)

    Args:
        kind: The class; it does not stand for its subclasses.

    Returns:
        A decorator for a function of a network of that class and of a function that gives the new widths for a list
        of widths; it returns a new network of random weights.
    """

    def add(variant: Variant) -> Variant:
        _VARIANTS[kind] = variant
        return variant

    return add


def with_crelu(model: nn.Module, example: Example, width: float | None = None) -> nn.Module:
    """Copy a network with CReLU in place of ReLU, and with narrower layers, so that it is as large as before.

    CReLU doubles what the next layer reads. Hidden layers are made narrower by one factor, found by bisection, at
    which the number of parameters comes closest to the old one; `plasticity.architecture.changes` tells both numbers.
    Layers of a new shape draw new weights by their `reset_parameters`, from PyTorch's global random state, so that
    this is for networks that have not been trained.

    It rewrites networks whose hidden units are all private, written by one plain Linear or Conv layer, with at most
    batch normalisation between, and activated by an `nn.ReLU`. Residual networks have to say themselves how, by
    `register_crelu`. Heads that Avalanche adds or grows later fit the new width.

    Args:
        model: The network.
        example: An input, or a tuple of its positional inputs; a few samples are enough.
        width: Factor of the widths; None: so that the number of parameters stays.

    Returns:
        A changed copy.

    Raises:
        UserError: If the network cannot be rewritten; says which group of units is in the way, and why.

    Source: Abbas et al. 2023, arXiv 2303.07507; widths as in Kumar et al. 2023, arXiv 2308.11958.
    """
    if width is not None and not width > 0:
        raise UserError(f"crelu: width must be above 0, not {width}")
    before = unwrap(model)
    variant = _VARIANTS.get(type(before))
    units: UnitGroups | None = None
    if variant is None:
        units, base = units_and_copy(before, example)
        _check(units, base)
        build = partial(_rewritten, base, units)
        light = partial(_rewritten, copy.deepcopy(base).to("meta"), units)
    else:
        if changes(before):
            raise UserError(f"crelu builds {type(before).__name__} anew: do it before {changes(before)[-1].name}")
        build = partial(_built, variant, before, None)
        light = partial(_built, variant, before, torch.device("meta"))
    if width is None:
        width = _fitting_width(lambda factor: parameter_count(light(factor)), parameter_count(before))
    changed = build(width).train(before.training)
    check_outputs(changed, before, example, "crelu")
    sizes = [(group.name, group.size) for group in find_units(changed, example)]
    if units is not None and [name for name, _ in sizes] != [group.name for group in units]:
        raise UserError("crelu: the units of the changed network are not those of the model")
    note(changed, "crelu", model, f"{sum(size for _, size in sizes)} units of two outputs, widths times {width:.3f}")
    return changed


def shrunk(sizes: Sequence[int], factor: float) -> list[int]:
    """Multiply widths and round them, each at another fraction, so that the sum follows the factor finely.

    Args:
        sizes: Widths, at least 1.
        factor: At 1, widths stay.

    Returns:
        As many widths of at least 1.
    """
    steps = [(number + 0.5) / len(sizes) for number in range(len(sizes))]
    return [max(1, int(size * factor + step)) for size, step in zip(sizes, steps, strict=True)]


def _fitting_width(count: Callable[[float], int], target: int) -> float:
    low, high, best = 0.0, 1.0, 1.0
    missed = abs(count(best) - target)
    for _ in range(24):
        middle = (low + high) / 2
        difference = count(middle) - target
        if abs(difference) < missed:
            best, missed = middle, abs(difference)
        low, high = (middle, high) if difference < 0 else (low, middle)
    return best


def _built(variant: Variant, network: nn.Module, device: torch.device | None, factor: float) -> nn.Module:
    widths = partial(shrunk, factor=factor)
    if device is not None:
        with device:
            return variant(network, widths)
    like = next(network.parameters())
    return variant(network, widths).to(device=like.device, dtype=like.dtype)


def _check(units: UnitGroups, model: nn.Module) -> None:
    """Refuse what cannot be rewritten."""
    dims: dict[nn.Module, int | None] = {}
    for group in units:
        module = activation_module(model, group, also=CReLU)
        dim = None if group.site is None else group.site.dim
        if type(module) is not nn.ReLU:
            reason: str | None = f"they are activated by {type(module).__name__} and not by nn.ReLU"
        else:
            reason = _obstacle(group, model)
        if reason is None and dims.setdefault(module, dim) != dim:
            reason = "their activation module also activates units that lie along another dimension"
        if reason is not None:
            raise UserError(f"crelu cannot change the units of `{group.name}`: {reason}")


def _obstacle(group: UnitGroup, model: nn.Module) -> str | None:
    if not group.private:
        return group.reason
    (write, *more) = group.writes
    writer: Any = layer(model, write.layer)
    if more or len(group.producers) > 1:
        return f"several layers write them: {', '.join(group.producers)}"
    if len(write.rows) != writer.weight.shape[0] or not torch.equal(write.rows, torch.arange(group.size)):
        return f"they are not the outputs of `{write.layer}` in their order"
    if group.site is None or group.site.dim is None or group.site.unit_of is not None:
        return "they do not lie along one dimension"
    if write.norm is not None and not isinstance(model.get_submodule(write.norm), _BatchNorm):
        return f"`{write.norm}` is not batch normalisation"
    for name in (write.layer, *(reader.layer for reader in group.readers)):
        found = layer(model, name)
        if type(found) not in _PLAIN or getattr(found, "groups", 1) != 1:
            return f"`{name}` is not a plain Linear or Conv layer"
    for reader in group.readers:
        if bool((reader.columns < 0).any()):
            return f"`{reader.layer}` reads some of them through more columns than others"
    return None


def _rewritten(base: nn.Module, units: UnitGroups, factor: float) -> nn.Module:
    model = copy.deepcopy(base)
    widths = shrunk([group.size for group in units], factor)
    outputs = {group.name: size for group, size in zip(units, widths, strict=True)}
    inputs: dict[str, int] = {}
    for group, size in zip(units, widths, strict=True):
        for reader in group.readers:
            known: Any = layer(model, reader.layer).weight
            now = inputs.get(reader.layer, known.shape[1])
            inputs[reader.layer] = now + (2 * size - group.size) * reader.columns_per_unit
    activations = {activation_module(model, group): group for group in units}
    for group in units:
        norm = group.writes[0].norm
        if norm is not None:
            _resize_norm(model.get_submodule(norm), outputs[group.name])
    for name in dict.fromkeys([*outputs, *inputs]):
        _resize(model, name, inputs.get(name), outputs.get(name))
    for module, group in activations.items():
        assert group.site is not None and group.site.dim is not None
        replace(model, module, CReLU(group.site.dim))
    return model


def _resize(model: nn.Module, name: str, inputs: int | None, outputs: int | None) -> None:
    """Give a layer another shape and new weights."""
    module: Any = layer(model, name)
    kind = "features" if isinstance(module, nn.Linear) else "channels"
    old = getattr(module, f"in_{kind}")
    new = old if inputs is None else inputs
    weight, bias = module.weight, module.bias
    rows = weight.shape[0] if outputs is None else outputs
    module.weight = nn.Parameter(weight.new_empty((rows, new, *weight.shape[2:])), weight.requires_grad)
    if bias is not None:
        module.bias = nn.Parameter(bias.new_empty(rows), bias.requires_grad)
    setattr(module, f"in_{kind}", new)
    setattr(module, f"out_{kind}", rows)
    module.reset_parameters()
    parents = name.split(".")[:-1]
    for depth in range(len(parents) + 1):  # a head for each task notes how wide the next one is to be
        parent: Any = model.get_submodule(".".join(parents[:depth]))
        if getattr(parent, "in_features", None) == old:
            parent.in_features = new


def _resize_norm(norm: Any, size: int) -> None:
    norm.num_features = size
    for key, parameter in list(norm.named_parameters(recurse=False)):
        setattr(norm, key, nn.Parameter(parameter.new_empty(size), parameter.requires_grad))
    for key in ("running_mean", "running_var"):
        if getattr(norm, key) is not None:
            setattr(norm, key, getattr(norm, key).new_empty(size))
    norm.reset_parameters()
