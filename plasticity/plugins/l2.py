"""L2 regularisation as an Avalanche plugin."""

from __future__ import annotations

from torch import Tensor, nn

from plasticity.errors import UserError
from plasticity.exclusion import Exclude
from plasticity.methods.l2 import PRESETS, add_l2_gradient, l2_penalty
from plasticity.methods.parameters import UNNORMALISED_KINDS, Entry, trainable
from plasticity.plugins.penalty import PenaltyPlugin
from plasticity.values import shown


class L2Plugin(PenaltyPlugin):
    """Add strength * ||theta||^2 to the loss: the plain control for L2 Init.

    Every trainable parameter in use counts but for those of normalisers; see `plasticity.methods.l2`.

    Args:
        strength: Of the penalty; 0 leaves everything untouched; None: the preset's.
        preset: "default", or "kumar2023" with the authors' half.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.

    Attributes:
        history: For every experience the number of steps, and the penalty at its end.

    Raises:
        UserError: If an argument has no meaning.

    Source: the baseline of Kumar et al. 2023, arXiv 2308.11958.
    """

    method = "l2"

    def __init__(
        self, strength: float | None = None, *, preset: str = "default", exclude: Exclude = None, dry_run: bool = False
    ) -> None:
        super().__init__(
            preset_strength(PRESETS, preset) if strength is None else strength, exclude=exclude, dry_run=dry_run
        )

    def entries(self, model: nn.Module) -> list[Entry]:
        """Return all parameters but those of normalisers."""
        return trainable(model, UNNORMALISED_KINDS, self.excluded.tensors(model))

    def add_gradient(self, entries: list[Entry], scale: Tensor) -> None:
        """Pull parameters to 0."""
        add_l2_gradient([entry.parameter for entry in entries], None, self.strength, scale)

    def penalty(self, entries: list[Entry]) -> Tensor:
        """Return strength * ||theta||^2."""
        return l2_penalty([entry.parameter for entry in entries], None, self.strength)


def preset_strength(presets: dict[str, float], preset: str) -> float:
    """Look a strength up by name.

    Raises:
        UserError: If there is none of that name.
    """
    if not isinstance(preset, str) or preset not in presets:
        raise UserError(f"unknown preset {shown(preset)}; there are: {', '.join(presets)}")
    return presets[preset]
