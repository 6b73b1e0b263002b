"""FIRE as an Avalanche plugin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from plasticity.exclusion import Exclude
from plasticity.methods.fire import FIRERule, fire
from plasticity.methods.parameters import Entry
from plasticity.plugins.arguments import change_rule
from plasticity.plugins.whole_weights import WholeWeightPlugin


class FIREPlugin(WholeWeightPlugin):
    """Before each experience but the first, replace every weight matrix by the nearest orthogonal one, scaled.

    In a network with attention only query and key projections change. See `plasticity.methods.fire`.

    Args:
        probe_samples: On how many training samples it is seen how far the outputs move, at most.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: `iterations`, `strength`, `layers`, `optimizer_state`; see `plasticity.methods.fire.FIRERule`.

    Attributes:
        history: For every treatment how many parameters changed, and how far weights and outputs moved.

    Raises:
        UserError: If an argument is unknown or has no meaning.

    Source: arXiv 2602.08040.
    """

    method = "fire"

    def __init__(
        self, *, probe_samples: int = 2048, exclude: Exclude = None, dry_run: bool = False, **rule: Any
    ) -> None:
        self.rule = change_rule(self, FIRERule(), rule)
        super().__init__(
            optimizer_state=self.rule.optimizer_state, probe_samples=probe_samples, exclude=exclude, dry_run=dry_run
        )

    @property
    def idle(self) -> bool:
        """Whether nothing changes."""
        return self.rule.strength == 0

    def change(self, model: nn.Module, generator: torch.Generator) -> Sequence[Entry]:
        """Make the weights orthogonal once."""
        return fire(model, self.rule, self.excluded.tensors(model))
