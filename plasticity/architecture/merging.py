"""Turn networks that this library has changed into plain ones with the same outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from plasticity.architecture.crelu import CReLU
from plasticity.architecture.injected import Injection
from plasticity.architecture.rewriting import Example, replace
from plasticity.errors import UserError
from plasticity.groups import UnitGroup, layer
from plasticity.surgery.removal import replace_values
from plasticity.tracing.preserve import Uncompiled, preserved
from plasticity.units import find_units

TOLERANCE = 1e-4
"""How far outputs may move by rounding, in units of the largest output."""


def merge(model: nn.Module, example: Example) -> None:
    """Put plain modules in the place of this library's, in place.

    Units of CReLU become two units of ReLU each, z and -z, so that their layer has twice as many outputs, and the
    normaliser twice as many channels. The three parts of a head that plasticity was injected into become one: by adding
    up their weights where it is linear in them, else side by side, with three times as many hidden units.

    Args:
        model: The network, a copy that nobody else uses.
        example: An input, or a tuple of its positional inputs, with samples of every task that has a head.

    Raises:
        UserError: If something cannot be merged, or the outputs for the example would change.
    """
    before = _outputs(model, example)
    if any(isinstance(module, Injection) for module in model.modules()):
        _merge_injection(model, example)
    if any(isinstance(module, CReLU) for module in model.modules()):
        _merge_crelu(model, example)
    if not close(_outputs(model, example), before):
        raise UserError("the network cannot be written as a plain one: its outputs would change")


def close(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs are the same but for rounding."""
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= TOLERANCE * other.abs().max()) if one.numel() else True


def _outputs(model: nn.Module, example: Example, values: Mapping[str, Tensor] | None = None) -> Tensor:
    inputs = example if isinstance(example, tuple) else (example,)
    with preserved(model), torch.no_grad(), Uncompiled():
        model.eval()
        output = functional_call(model, dict(values or {}), inputs)
    if not isinstance(output, Tensor):
        raise UserError(
            f"the network gives a {type(output).__name__}, of which it cannot be seen whether it stays equal"
        )
    return output


# --- CReLU -----------------------------------------------------------------------------------------------------------


def _merge_crelu(model: nn.Module, example: Example) -> None:
    activated = [(group, _activating(model, group)) for group in find_units(model, example)]
    groups = [group for group, module in activated if isinstance(module, CReLU)]
    modules = {module for _, module in activated if isinstance(module, CReLU)}
    for name, module in model.named_modules():
        if isinstance(module, CReLU) and module not in modules:
            raise UserError(f"CReLU at '{name}' cannot be merged: the example does not reach it")
    for group in groups:
        obstacle = _obstacle(model, group)
        if obstacle is not None:
            raise UserError(f"CReLU behind '{group.name}' cannot be merged: {obstacle}")
    for group in groups:
        (write,) = group.writes
        writer: Any = layer(model, write.layer)
        for parameter in writer.parameters(recurse=False):
            _double(parameter, -1)
        setattr(writer, "out_features" if isinstance(writer, nn.Linear) else "out_channels", 2 * group.size)
        if write.norm is not None:
            norm: Any = model.get_submodule(write.norm)
            for key, tensor in (*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)):
                if tensor.dim() == 1:
                    _double(tensor, 1 if key in ("weight", "running_var") else -1)
            norm.num_features = 2 * group.size
    for module in modules:
        replace(model, module, nn.ReLU().train(module.training))


def _activating(model: nn.Module, group: UnitGroup) -> nn.Module:
    return model.get_submodule((group.at if group.site is None else group.site.module) or "")


def _double(tensor: Tensor, sign: int) -> None:
    replace_values(tensor, torch.cat([tensor.detach(), sign * tensor.detach()]))


def _obstacle(model: nn.Module, group: UnitGroup) -> str | None:
    """Say why the units of a group cannot become two each; None if nothing is known to be in the way."""
    if not group.private:
        return group.reason
    if len(group.writes) > 1:
        return f"several layers write its units: {', '.join(group.producers)}"
    (write,) = group.writes
    writer = layer(model, write.layer)
    weight = writer.weight
    if not isinstance(weight, nn.Parameter) or getattr(writer, "groups", 1) != 1:
        return f"`{write.layer}` is not a plain Linear or Conv layer"
    if len(write.rows) != len(weight) or not torch.equal(write.rows.cpu(), torch.arange(group.size)):
        return f"its units are not the outputs of `{write.layer}` in their order"
    if write.norm is not None and not isinstance(model.get_submodule(write.norm), _BatchNorm):
        return f"`{write.norm}` is not batch normalisation"
    return None


# --- plasticity injection --------------------------------------------------------------------------------------------


def _merge_injection(model: nn.Module, example: Example) -> None:
    for home in list(model.modules()):
        for key, injection in list(home._modules.items()):
            if isinstance(injection, Injection):
                parts, layers, first = injection.parts(), injection.layers(), injection.head()[0]
                injection.detach()
                del home._modules[key]
                idle = all(torch.equal(now, begun) for _, now, begun in parts.values())
                if idle or _linear(model, first, parts, example):
                    with torch.no_grad():
                        for tensor, (frozen, now, begun) in parts.items():
                            tensor.copy_(frozen + (now - begun))
                else:
                    _widen(layers, parts)


def _widen(layers: list[nn.Module], parts: Mapping[Tensor, tuple[Tensor, Tensor, Tensor]]) -> None:
    """Put the three parts of a head with hidden layers side by side, as one with three times as many hidden units.

    Raises:
        UserError: If the head is not one linear layer after the other, with nothing but batch normalisation between.
    """
    chain: list[Any] = [module for module in layers if isinstance(module, nn.Linear)]
    follows = all(one.out_features == other.in_features for one, other in zip(chain, chain[1:], strict=False))
    plain = all(isinstance(module, nn.Linear | _BatchNorm) for module in layers)
    if len(chain) < 2 or not follows or not plain or layers[-1] is not chain[-1]:
        kinds = ", ".join(type(module).__name__ for module in layers)
        raise UserError(
            f"the head that plasticity was injected into ({kinds}) cannot be merged: only linear layers, one after the "
            "other, with nothing but batch normalisation between can hold its three parts side by side"
        )
    for module in layers:
        last = module is chain[-1]
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            three = parts[tensor]
            if last and tensor.dim() == 2:
                value = torch.cat([three[0], three[1], -three[2]], dim=1)
            elif last or tensor.dim() == 0:
                value = three[0] + (three[1] - three[2])
            elif tensor.dim() == 2 and module is not chain[0]:
                value = torch.block_diag(*three)
            else:
                value = torch.cat(three)
            replace_values(tensor, value)
        for key in ("in_features", "out_features", "num_features"):
            outside = (key == "in_features" and module is chain[0]) or (key == "out_features" and last)
            if hasattr(module, key) and not outside:
                setattr(module, key, 3 * getattr(module, key))


def _linear(
    model: nn.Module, first: nn.Module, parts: Mapping[Tensor, tuple[Tensor, Tensor, Tensor]], example: Example
) -> bool:
    """Tell whether a head is linear in its weights, up to a constant, by its outputs for random values of these.

    It reads random values too: for features that the example leaves at 0, every head is a constant.
    """
    for tensor, (frozen, now, begun) in parts.items():
        if not isinstance(tensor, nn.Parameter) and not (torch.equal(now, frozen) and torch.equal(now, begun)):
            return False
    generator = torch.Generator().manual_seed(0)
    own = {name: each for name, each in model.named_parameters() if each in parts}
    draws = [{n: torch.randn(p.shape, generator=generator).to(p) for n, p in own.items()} for _ in range(3)]
    one, other, third = draws
    sums = {name: one[name] + other[name] - third[name] for name in own}
    seen = []
    for values in (*draws, sums):
        features = torch.Generator().manual_seed(1)  # the same in every pass
        handle = first.register_forward_pre_hook(lambda _, inputs, source=features: _drawn(inputs, source))
        try:
            seen.append(_outputs(model, example, values).double())
        finally:
            handle.remove()
    return close(seen[0] + seen[1] - seen[2], seen[3])


def _drawn(inputs: tuple[Any, ...], generator: torch.Generator) -> tuple[Any, ...]:
    """Return random values in the place of the first input, if that is of real numbers; others choose a task."""
    features, *rest = inputs
    if not isinstance(features, Tensor) or not features.is_floating_point():
        return inputs
    return (torch.randn(features.shape, generator=generator).to(features), *rest)
