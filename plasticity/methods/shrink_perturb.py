"""Shrink and perturb: three algorithms that share a name and an idea, to make weights smaller and blur them.

- "experience": at the start of an experience theta <- shrink * theta + perturb * fresh, with a fresh draw of the
  initialiser; running statistics and optimizer begin anew. Source: Ash and Adams 2020, "On Warm-Starting Neural Network
  Training", arXiv 1910.08475, with 0.4 and 0.1 as in their code.
- "step": after every update theta <- (1 - decay) * theta + noise * std_0 * xi with xi ~ N(0, 1). std_0 is the standard
  deviation of the parameter's initial values ("initial"), so that noise has the size of a scaled draw of the
  initialiser, as in the code of Kumar et al. 2023, arXiv 2308.11958, whose tables have decay 1e-4 and noise 1e-2 on
  three benchmarks of four; or 1 ("normal"), as in Dohare et al. 2024 and Elsayed and Mahmood 2024. What a draw looks
  like is lost in the sum over thousands of steps, so it is normal here. Normalisers are left alone: noise around a
  scale of 1 would add up to noise / decay.
- "interpolate": at the start of an experience theta <- (1 - strength) * theta + strength * theta_0, with the values
  that the network began with. Source: the code of FIRE, arXiv 2602.08040, with 0.8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from plasticity.errors import UserError
from plasticity.methods.parameters import Entry
from plasticity.methods.whole_weights import OptimizerState, check_optimizer_state, draw_like, reset_running_statistics
from plasticity.values import check_count, in_range

Variant = Literal["experience", "step", "interpolate"]
NoiseScale = Literal["initial", "normal"]


@dataclass(frozen=True)
class ShrinkPerturbRule:
    """How weights are shrunk and perturbed.

    Attributes:
        variant: Which of the three algorithms; the module says what they do.
        shrink: For "experience": factor of the present weights, in [0, 1].
        perturb: For "experience": factor of the fresh draw, at least 0.
        decay: For "step": what weights lose at every step, in [0, 1].
        noise: For "step": the noise of a step, in units of `scale`, at least 0.
        scale: For "step": "initial" or "normal".
        strength: For "interpolate": factor of the initial values, in [0, 1].
        optimizer_state: For "experience" and "interpolate": "clear", as the sources do, or "keep".
        step_every: For "step": act after so many updates of an experience, by what as many steps come to where nothing
            else happens between them. The noise is what a step costs, so 10 take a tenth.
    """

    variant: Variant = "experience"
    shrink: float = 0.4
    perturb: float = 0.1
    decay: float = 1e-4
    noise: float = 1e-2
    scale: NoiseScale = "initial"
    strength: float = 0.8
    optimizer_state: OptimizerState = "clear"
    step_every: int = 1

    def __post_init__(self) -> None:
        for name, kind in (("variant", Variant), ("scale", NoiseScale)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"unknown {name} {getattr(self, name)!r}; there are: {', '.join(get_args(kind))}")
        for name in ("shrink", "decay", "strength"):
            in_range(name, getattr(self, name), 0, 1)
        for name in ("perturb", "noise"):
            in_range(name, getattr(self, name))
        check_count("step_every", self.step_every)
        check_optimizer_state(self.optimizer_state)

    @property
    def idle(self) -> bool:
        """Whether the rule changes nothing."""
        return {
            "experience": self.shrink == 1 and self.perturb == 0,
            "step": self.decay == 0 and self.noise == 0,
            "interpolate": self.strength == 0,
        }[self.variant]

    @property
    def kept(self) -> float:
        """What `step_every` steps leave of a weight."""
        return (1 - self.decay) ** self.step_every

    @property
    def spread(self) -> float:
        """Standard deviation of what `step_every` steps add, in units of the noise of one."""
        return math.sqrt(sum((1 - self.decay) ** (2 * steps) for steps in range(self.step_every)))


PRESETS: dict[str, ShrinkPerturbRule] = {
    "ash2020": ShrinkPerturbRule(),
    "kumar2023": ShrinkPerturbRule("step"),
    "fire2026": ShrinkPerturbRule("interpolate"),
}


def shrink_and_perturb(
    model: nn.Module,
    entries: Sequence[Entry],
    initial: Mapping[str, Tensor],
    rule: ShrinkPerturbRule,
    generator: torch.Generator,
    spared: frozenset[Tensor] = frozenset(),
) -> Sequence[Entry]:
    """Shrink and perturb a network once, by the variant "experience" or "interpolate".

    Args:
        model: The network.
        entries: The parameters to change.
        initial: Initial values of each, by qualified name, to draw from or to return to.
        rule: How; with "experience", running statistics of normalisers begin anew.
        generator: Where fresh draws come from.
        spared: Running statistics that are left alone.

    Returns:
        The parameters changed.
    """
    values = [entry.parameter.detach() for entry in entries]
    if not values:
        return entries
    begin = [initial[entry.name] for entry in entries]
    with torch.no_grad():
        if rule.variant == "interpolate":
            torch._foreach_mul_(values, 1 - rule.strength)
            torch._foreach_add_(values, begin, alpha=rule.strength)
        else:
            torch._foreach_mul_(values, rule.shrink)
            if rule.perturb > 0:
                torch._foreach_add_(values, [draw_like(value, generator) for value in begin], alpha=rule.perturb)
            reset_running_statistics(model, spared)
    return entries


def noise_scales(entries: Sequence[Entry], initial: Mapping[str, Tensor], rule: ShrinkPerturbRule) -> list[Tensor]:
    """Return the size of the noise in each parameter, 0-dim each: `noise`, times std_0 with scale "initial".

    With `step_every` it is that of so many steps.
    """
    scales = []
    for entry in entries:
        values = initial[entry.name]
        spread = values.std(correction=0) if values.numel() else values.new_zeros(())
        scales.append(rule.noise * rule.spread * (spread if rule.scale == "initial" else torch.ones_like(spread)))
    return scales


def shrink_and_perturb_step(
    parameters: Sequence[Tensor],
    scales: Sequence[Tensor],
    rule: ShrinkPerturbRule,
    generator: torch.Generator | None = None,
) -> None:
    """Shrink and perturb once, by the variant "step"; with `step_every` as much as in so many steps.

    Args:
        parameters: The parameters.
        scales: Of each the size of the noise, 0-dim, as `noise_scales` returns them.
        rule: How.
        generator: Of the parameters' device, where noise comes from.
    """
    values = [parameter.detach() for parameter in parameters]
    if not values:
        return
    with torch.no_grad():
        if rule.decay > 0:
            torch._foreach_mul_(values, rule.kept)
        if rule.noise > 0:
            # One draw for all: on a GPU a launch for each parameter would take longer than the numbers.
            sizes = [value.numel() for value in values]
            drawn = torch.empty(sum(sizes), device=values[0].device).normal_(generator=generator).split(sizes)
            noise = [part.view_as(value) for part, value in zip(drawn, values, strict=True)]
            torch._foreach_mul_(noise, list(scales))
            torch._foreach_add_(values, noise)
