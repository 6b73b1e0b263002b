"""Spectral regularisation as an Avalanche plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.exclusion import Exclude
from plasticity.methods.parameters import ALL_KINDS, Entry, trainable
from plasticity.methods.spectral_regularization import (
    SpectralRule,
    add_spectral_gradient,
    spectral_penalty,
    start_vector,
)
from plasticity.plugins.arguments import change_rule
from plasticity.plugins.penalty import PenaltyPlugin
from plasticity.surgery.removal import Removal
from plasticity.values import check_seed


class SpectralRegularizationPlugin(PenaltyPlugin):
    """Keep the largest singular value of every weight matrix near 1, by a penalty that is part of the loss.

    Layers, biases and normalisers in use count; see `plasticity.methods.spectral_regularization`.

    Args:
        strength: Of the penalty; 0 leaves everything untouched.
        seed: Seed of the plugin's own random generator, for the first guess of singular vectors.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: `power`, `biases`, `normalisers`; see `plasticity.methods.spectral_regularization.SpectralRule`.

    Attributes:
        vectors: The leading left singular vector of each weight, by qualified name.
        history: For every experience the number of steps, and the penalty at its end.

    Raises:
        UserError: If an argument is unknown or has no meaning.

    Source: Lewandowski et al. 2025, arXiv 2406.06811.
    """

    method = "spectral-regularization"

    def __init__(
        self,
        strength: float = SpectralRule.strength,
        *,
        seed: int = 0,
        exclude: Exclude = None,
        dry_run: bool = False,
        **rule: Any,
    ) -> None:
        chosen = change_rule(self, SpectralRule(), rule)
        super().__init__(strength, exclude=exclude, dry_run=dry_run)
        self.rule = replace(chosen, strength=self.strength)
        self.vectors: dict[str, Tensor] = {}
        self._generator_state = torch.Generator().manual_seed(check_seed(seed)).get_state()

    def entries(self, model: nn.Module) -> list[Entry]:
        """Return what is penalised, with a singular vector for each weight; those of changed shapes are found anew."""
        spared = self.excluded.tensors(model)
        entries = [entry for entry in trainable(model, ALL_KINDS, spared) if self.rule.role(entry) is not None]
        generator = torch.Generator()
        generator.set_state(self._generator_state)
        vectors = {}
        for entry in entries:
            if self.rule.role(entry) == "matrix":
                known = self.vectors.get(entry.name)
                if known is None or len(known) != len(entry.parameter):
                    known = start_vector(entry, generator)
                vectors[entry.name] = known.to(entry.parameter)
        self.vectors = vectors
        self._generator_state = generator.get_state()
        return entries

    def follow_removal(self, strategy: Any, removal: Removal) -> None:
        """Go along with units that another plugin has removed physically."""
        if self.strength > 0:
            self._entries = self.entries(strategy.model)

    def add_gradient(self, entries: list[Entry], scale: Tensor) -> None:
        """Pull largest singular values to 1 and biases to 0."""
        add_spectral_gradient(entries, self.vectors, self.rule, scale)

    def penalty(self, entries: list[Entry]) -> Tensor:
        """Return the penalty, with exact singular values."""
        return spectral_penalty(entries, self.rule)

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, the singular vectors among it."""
        vectors = {name: vector.clone() for name, vector in self.vectors.items()}
        return {**super().state_dict(), "vectors": vectors, "generator": self._generator_state.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned between two experiences."""
        super().load_state_dict(state)
        self.vectors = {name: vector.clone() for name, vector in state["vectors"].items()}
        self._generator_state = state["generator"].clone()
