"""Changes of whole weights between experiences: what all methods of that kind share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.methods.parameters import Entry, total_norm, trainable
from plasticity.methods.treatment import Treatment
from plasticity.probe import Probe, output_shift
from plasticity.surgery.masks import Removed
from plasticity.surgery.optimizer_state import forget_state

OptimizerState = Literal["clear", "keep"]
"""What becomes of the optimizer's state: "clear" makes it as new, "keep" leaves momentum and step counts."""


def change_weights(
    method: str,
    model: nn.Module,
    probe: Probe,
    change: Callable[[], Sequence[Entry]],
    *,
    optimizer: Optimizer | None = None,
    optimizer_state: OptimizerState = "clear",
    masks: Sequence[Removed] = (),
    spared: frozenset[Tensor] = frozenset(),
) -> Treatment:
    """Change weights in place and report what that did.

    Args:
        method: Name of the method.
        model: The network.
        probe: Training inputs on which to see how far the outputs move.
        change: Changes the weights, and returns which.
        optimizer: The network's optimizer.
        optimizer_state: What becomes of its state.
        masks: What is removed for good and stays removed.
        spared: Parameters whose state in the optimizer is left as it is.

    Returns:
        The report. Its counts are changed "parameters" (tensors), their "entries", and the "relative_change", the
        distance that the weights of the network moved over their length before.

    Raises:
        UserError: If `optimizer_state` is unknown.
    """
    check_optimizer_state(optimizer_state)
    before = probe.outputs(model)
    present = [entry.parameter.detach() for entry in trainable(model)]
    old = [value.clone() for value in present]
    with torch.no_grad():
        changed = change()
    for kept in masks:
        kept.apply(model)
    if optimizer is not None and optimizer_state == "clear":
        forget_state(optimizer, spared)
    length = float(total_norm(old))
    moved = float(total_norm(list(torch._foreach_sub(present, old)))) if present else 0.0
    return Treatment(
        method=method,
        samples=probe.samples,
        counts={
            "parameters": len(changed),
            "entries": sum(entry.parameter.numel() for entry in changed),
            "relative_change": moved / length if length > 0 else moved,
        },
        output_shift=output_shift(before, probe.outputs(model)),
    )


def check_optimizer_state(value: str) -> None:
    """Check what is to become of the optimizer's state.

    Raises:
        UserError: If it is unknown.
    """
    if value not in get_args(OptimizerState):
        raise UserError(f"unknown optimizer_state {value!r}; there are: {', '.join(get_args(OptimizerState))}")


def reset_running_statistics(model: nn.Module, spared: frozenset[Tensor] = frozenset()) -> None:
    """Let every normaliser forget the statistics of the data it has seen, but for those whose buffers are spared."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean not in spared:
            module.reset_running_stats()


def draw_like(values: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a tensor from the distribution of a tensor's entries.

    Args:
        values: The entries, such as a parameter's initial values: the initialiser itself is seldom known.
        generator: Where random numbers come from; one of the CPU draws the same for every device.

    Returns:
        Of the shape of `values`; each entry is one of them, drawn with replacement.
    """
    picks = torch.randint(max(1, values.numel()), values.shape, generator=generator, device=generator.device)
    return values.flatten()[picks.to(values.device)]
