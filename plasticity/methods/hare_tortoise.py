"""Hare and tortoise: a fast network learns, a slow one averages it, and at times the fast one goes back to the slow.

After every update tortoise <- momentum * tortoise + (1 - momentum) * hare; every so many steps hare <- tortoise. The
tortoise is the one to use: it generalises, while the hare keeps able to learn. Floating-point buffers, the running
statistics of normalisers, are averaged and set back in the same way; others, such as counters, belong to the hare.

Source: Lee et al. 2024, "Slow and Steady Wins the Race: Maintaining Plasticity with Hare and Tortoise Networks",
arXiv 2406.02596. Its momentum and period were not at hand: the defaults here are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from plasticity.errors import UserError
from plasticity.groups import unwrap
from plasticity.methods.parameters import grown
from plasticity.methods.whole_weights import OptimizerState, check_optimizer_state
from plasticity.surgery.removal import Removal
from plasticity.values import check_count, in_range


@dataclass(frozen=True)
class HareTortoiseRule:
    """How slow the tortoise is.

    Attributes:
        momentum: Of the moving average, in [0, 1]; with 0 the tortoise is the hare.
        reset_every: After how many steps the hare goes back to the tortoise; None: never.
        optimizer_state: What becomes of the optimizer's state then: "keep" or "clear".
    """

    momentum: float = 0.99
    reset_every: int | None = 1000
    optimizer_state: OptimizerState = "keep"

    def __post_init__(self) -> None:
        in_range("momentum", self.momentum, 0, 1)
        if self.reset_every is not None:
            check_count("reset_every", self.reset_every)
        check_optimizer_state(self.optimizer_state)


PRESETS: dict[str, HareTortoiseRule] = {"default": HareTortoiseRule()}


class Tortoise:
    """The moving average of a network's parameters and floating-point buffers, by qualified name.

    Args:
        spared: Gives, for a network, the parameters and buffers of it that are left alone; None: none are.
    """

    def __init__(self, spared: Callable[[nn.Module], frozenset[Tensor]] | None = None) -> None:
        self._spared = spared
        self.values: dict[str, Tensor] = {}
        self._live: list[Tensor] = []
        self._slow: list[Tensor] = []

    @property
    def following(self) -> bool:
        """Whether it has hold of a network."""
        return bool(self._live)

    def follow(self, model: nn.Module, anew: bool = False) -> None:
        """Average this model from now on; what it has grown by joins the average as it is.

        Args:
            model: The network.
            anew: Forget the average so far.
        """
        live = self.averaged(model)
        known = {} if anew else self.values
        self.values = {name: grown(known.get(name), tensor) for name, tensor in live.items()}
        self._live, self._slow = list(live.values()), list(self.values.values())

    def update(self, momentum: float) -> None:
        """Take one step towards the network."""
        with torch.no_grad():
            if self._live:
                torch._foreach_lerp_(self._slow, self._live, 1 - momentum)

    def give(self) -> None:
        """Set the network back to the average."""
        with torch.no_grad():
            if self._live:
                torch._foreach_copy_(self._live, self._slow)

    def exchange(self, model: nn.Module) -> None:
        """Exchange the average and the network's own values; a second time puts both back."""
        live = self.averaged(model)
        with torch.no_grad():
            for name, tensor in live.items():
                mine = grown(self.values.get(name), tensor)
                self.values[name] = tensor.clone()
                tensor.copy_(mine)
        self._slow = [self.values[name] for name in live]

    def follow_removal(self, model: nn.Module, removal: Removal) -> None:
        """Go along with units that were removed physically from the network: they are gone from the average, too."""
        self.values = {name: removal.left_of(name, value) for name, value in self.values.items()}
        if self.following:
            self.follow(model)

    def renew(self, model: nn.Module, names: Collection[str]) -> None:
        """Begin the average of some parameters at their present values: they were drawn anew."""
        live = self.averaged(model)
        with torch.no_grad():
            for name in names:
                if name in self.values:
                    self.values[name].copy_(live[name])

    def release(self) -> None:
        """Let go of the network; `follow` takes hold of it again."""
        self._live, self._slow = [], []

    def averaged(self, model: nn.Module) -> dict[str, Tensor]:
        """Return what of a network is averaged: its own tensors, by name."""
        network = unwrap(model)
        for name, parameter in network.named_parameters():
            if is_lazy(parameter):
                raise UserError(f"parameter '{name}' has no values yet; run the model once before")
        spared: frozenset[Tensor] = frozenset() if self._spared is None else self._spared(model)
        found = {name: each.detach() for name, each in network.named_parameters() if each not in spared}
        buffers = {name: buffer for name, buffer in network.named_buffers() if buffer not in spared}
        return found | {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by name."""
        return {name: value.clone() for name, value in self.values.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        self.values = {name: value.clone() for name, value in state.items()}
        self.release()
