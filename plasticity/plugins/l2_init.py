"""L2 Init as an Avalanche plugin."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from plasticity.exclusion import Exclude
from plasticity.methods.l2_init import PRESETS, add_regenerative_gradient, regenerative_penalty
from plasticity.methods.parameters import UNNORMALISED_KINDS, Entry, InitialValues
from plasticity.plugins.l2 import preset_strength
from plasticity.plugins.penalty import PenaltyPlugin
from plasticity.surgery.removal import Removal


class L2InitPlugin(PenaltyPlugin):
    """Add strength * ||theta - theta_0||^2 to the loss, which draws parameters back to their initial values.

    Every trainable parameter in use counts but for those of normalisers. Initial values are those that a parameter has
    when training first meets it; what a head grows by is added to them as it comes. See `plasticity.methods.l2_init`.

    Args:
        strength: Of the penalty; 0 leaves everything untouched; None: the preset's.
        preset: "default", or "kumar2023" with the authors' half.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.

    Attributes:
        initial: The initial values by qualified name of the parameter.
        history: For every experience the number of steps, and the penalty at its end.

    Raises:
        UserError: If an argument has no meaning.

    Source: Kumar, Marklund and Van Roy 2023, arXiv 2308.11958.
    """

    method = "l2-init"

    def __init__(
        self, strength: float | None = None, *, preset: str = "default", exclude: Exclude = None, dry_run: bool = False
    ) -> None:
        super().__init__(
            preset_strength(PRESETS, preset) if strength is None else strength, exclude=exclude, dry_run=dry_run
        )
        self.initial = InitialValues(UNNORMALISED_KINDS)

    def entries(self, model: nn.Module) -> list[Entry]:
        """Return all parameters but those of normalisers, once their initial values are kept."""
        return self.initial.update(model, self.excluded.tensors(model))

    def add_gradient(self, entries: list[Entry], scale: Tensor) -> None:
        """Pull parameters to their initial values."""
        parameters = [entry.parameter for entry in entries]
        add_regenerative_gradient(parameters, [self.initial[entry.name] for entry in entries], self.strength, scale)

    def penalty(self, entries: list[Entry]) -> Tensor:
        """Return strength * ||theta - theta_0||^2."""
        parameters = [entry.parameter for entry in entries]
        return regenerative_penalty(parameters, [self.initial[entry.name] for entry in entries], self.strength)

    def follow_removal(self, strategy: Any, removal: Removal) -> None:
        """Go along with units that another plugin has removed physically."""
        self.initial.follow(removal)

    def follow_renewal(self, strategy: Any, names: Collection[str]) -> None:
        """Go along with parameters that another plugin has drawn anew."""
        self.initial.renew(strategy.model, names)

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, the initial values among it."""
        return {**super().state_dict(), "initial": self.initial.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned between two experiences."""
        super().load_state_dict(state)
        self.initial.load_state_dict(state["initial"])
