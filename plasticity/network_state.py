"""What a network and its optimizer hold, by name, as tensors and plain values that load with `weights_only=True`.

A network that is built anew need not have the shapes yet that the saved one had: layers whose units were removed and
heads that have grown get theirs, and an injected head is built again. Only modules that appear with the data, such as
the heads of further tasks, have to be there.

    saved = {"network": network_state(model), "optimizer": optimizer_state(optimizer, model)}
    ...
    load_network_state(model, saved["network"])
    load_optimizer_state(optimizer, model, saved["optimizer"])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from plasticity.architecture.injection import injected_heads, repeat_injection
from plasticity.errors import UserError
from plasticity.groups import unwrap
from plasticity.surgery.removal import replace_values

_INTERNAL = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, type(None))


def network_state(model: nn.Module) -> dict[str, Any]:
    """Return everything that a network holds.

    Args:
        model: The network, outside of forward and backward passes.

    Returns:
        Its parameters and buffers (those that `state_dict` leaves out, too), which parameters are frozen, the plain
        attributes of its modules, and its injected heads. Tensors share memory with the network.

    Raises:
        UserError: If a lazy module has not seen data yet.
    """
    network = unwrap(model)
    parameters = dict(network.named_parameters())
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise UserError(f"parameter '{name}' has no shape yet, and cannot be saved")
    return {
        "parameters": {name: parameter.detach() for name, parameter in parameters.items()},
        "buffers": {name: buffer.detach() for name, buffer in network.named_buffers()},
        "frozen": [name for name, parameter in parameters.items() if not parameter.requires_grad],
        "attributes": {name: found for name, module in network.named_modules() if (found := _attributes(module))},
        "injected": injected_heads(network),
    }


def load_network_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Take over what `network_state` returned; parameters and buffers stay the same objects.

    Args:
        model: A network of the same kind, with heads for the tasks that the saved one had.
        state: Of the saved network.

    Raises:
        UserError: If the networks have other parameters, buffers or types of numbers; nothing but injected heads has
            been changed then.
    """
    network = unwrap(model)
    present = injected_heads(network)
    for names in state["injected"]:
        if names not in present:
            repeat_injection(network, names)
    modules = dict(network.named_modules())
    for name, attributes in state["attributes"].items():
        if name in modules and "_keys" in attributes:  # of an injected head that has grown: makes room for its buffers
            _make_room(modules[name], state["buffers"], name)
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    _require_same(parameters, state["parameters"], "parameter")
    _require_same(buffers, state["buffers"], "buffer")
    with torch.no_grad():
        for tensors, values in ((parameters, state["parameters"]), (buffers, state["buffers"])):
            for name, value in values.items():
                _put(tensors[name], value)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in state["frozen"])
    for name, attributes in state["attributes"].items():
        own = modules[name].__dict__ if name in modules else {}
        own.update(
            {key: value for key, value in attributes.items() if not _is_plain(own.get(key)) or own.get(key) != value}
        )


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return everything that an optimizer holds, with the names of its parameters.

    Args:
        optimizer: The optimizer.
        model: The network that it trains.

    Raises:
        UserError: If it holds parameters that are not the network's.
    """
    names = {parameter: name for name, parameter in unwrap(model).named_parameters()}
    groups = [[names.get(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    if any(name is None for group in groups for name in group):
        raise UserError("the optimizer holds parameters that are not the network's, and cannot be saved by their names")
    return {"names": groups, "state": optimizer.state_dict()}


def load_optimizer_state(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Take over what `optimizer_state` returned, once the network is as it was.

    Args:
        optimizer: An optimizer of the same kind; which parameters it holds does not matter.
        model: The network.
        state: Of the saved optimizer.

    Raises:
        UserError: If the network lacks a parameter, or the optimizer has other groups.
    """
    parameters = dict(unwrap(model).named_parameters())
    missing = [name for group in state["names"] for name in group if name not in parameters]
    if missing:
        raise UserError(f"the network has no parameter '{missing[0]}', which the saved optimizer holds")
    if len(optimizer.param_groups) != len(state["names"]):
        raise UserError(
            f"the optimizer has {len(optimizer.param_groups)} groups of parameters, the saved one {len(state['names'])}"
        )
    optimizer.state.clear()
    for group, names in zip(optimizer.param_groups, state["names"], strict=True):
        group["params"] = [parameters[name] for name in names]
    optimizer.load_state_dict(dict(state["state"]))


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in _INTERNAL and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(_is_plain(key) and _is_plain(each) for key, each in value.items())
    if type(value) in (list, tuple, set):
        return all(_is_plain(each) for each in value)
    return type(value) in _PLAIN


def _make_room(module: nn.Module, saved: Mapping[str, Tensor], name: str) -> None:
    """Give an injected head buffers for what its saved counterpart had got since the injection."""
    prefix = f"{name}." if name else ""
    for key, value in saved.items():
        own = key.removeprefix(prefix)
        if key.startswith(prefix) and "." not in own and own not in module._buffers:
            module.register_buffer(own, value.clone())


def _require_same(present: Mapping[str, Tensor], saved: Mapping[str, Tensor], kind: str) -> None:
    for one, other, words in ((present, saved, "the saved network has no"), (saved, present, "the network has no")):
        missing = [name for name in one if name not in other]
        if missing:
            raise UserError(f"{words} {kind} '{missing[0]}'")
    for name, value in saved.items():
        if is_lazy(present[name]):
            raise UserError(f"{kind} '{name}' has no shape yet: run the network once before it is loaded")
        if present[name].dtype != value.dtype:
            raise UserError(f"{kind} '{name}' is {present[name].dtype}, the saved one {value.dtype}")


def _put(tensor: Tensor, value: Tensor) -> None:
    if tensor.shape == value.shape:
        tensor.copy_(value)
    else:
        replace_values(tensor, value.to(tensor.device).clone())
