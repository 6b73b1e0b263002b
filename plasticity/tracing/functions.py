"""The functions that count as activations, by every name under which PyTorch offers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NAMES = (
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardtanh hardswish hardsigmoid sigmoid tanh "
    "softplus softsign logsigmoid threshold hardshrink softshrink tanhshrink sin cos"
).split()


def _collect() -> dict[Callable[..., Any], str]:
    found: dict[Callable[..., Any], str] = {}
    for name in _NAMES:
        for home in (F, torch, Tensor):
            for spelling in (name, name + "_"):
                function = getattr(home, spelling, None)
                if callable(function):
                    found[function] = name
    found[torch.special.expit] = "sigmoid"
    return found


ACTIVATIONS = _collect()
CLAMPS: frozenset[Callable[..., Any]] = frozenset(
    function
    for home in (torch, Tensor)
    for spelling in ("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_")
    if callable(function := getattr(home, spelling, None))
)
NON_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "softplus"})
"""Activations whose output has no sign, so that mean and mean magnitude are the same."""

ACTIVATION_MODULES: dict[type[nn.Module], str] = {
    getattr(nn, name): name.lower()
    for name in (
        "ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Hardtanh Hardswish Hardsigmoid Sigmoid Tanh "
        "Softplus Softsign LogSigmoid Threshold Hardshrink Softshrink Tanhshrink"
    ).split()
}
for _module, _name in ((nn.LeakyReLU, "leaky_relu"),):
    ACTIVATION_MODULES[_module] = _name

WATCHED_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(ACTIVATIONS) | CLAMPS


def activation_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Name the activation that a call applies, or None if the call is none."""
    name = ACTIVATIONS.get(function)
    if name is not None or function not in CLAMPS:
        return name
    minimum = kwargs.get("min", args[1] if len(args) > 1 else None)
    maximum = kwargs.get("max", args[2] if len(args) > 2 else None)
    if isinstance(minimum, Tensor) or isinstance(maximum, Tensor) or minimum != 0:
        return None  # a guard against extreme numbers
    return {None: "relu", 6: "relu6"}.get(maximum, "hardtanh")
