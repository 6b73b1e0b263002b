"""Normalize-and-project as an Avalanche plugin."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.exclusion import Exclude
from plasticity.groups import unwrap
from plasticity.methods.normalize_and_project import draw_back, grown_norm, project
from plasticity.methods.parameters import NORM_KINDS, WEIGHT_KINDS, InitialValues, total_norm, trainable
from plasticity.plugins.beside import starts_anew
from plasticity.plugins.removed import keep_removed
from plasticity.plugins.steps import StepPlugin
from plasticity.surgery.removal import Removal
from plasticity.values import in_range


class NormalizeAndProjectPlugin(StepPlugin):
    """After every update, give each weight matrix the norm again that it had at the start.

    Weights of all layers count, biases do not. What a head grows by adds its own norm. Combine it with a network that
    normalises before every activation; see `plasticity.methods.normalize_and_project`.

    Args:
        normaliser_decay: By which share of the distance scales and shifts of normalisers are drawn to their initial
            values at every step, in [0, 1].
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.

    Attributes:
        history: For every experience the number of steps.

    Raises:
        UserError: If an argument has no meaning.

    Source: Lyle et al. 2024, arXiv 2407.01800.
    """

    method = "normalize-and-project"
    acts = ("moves", "remembers")

    def __init__(self, *, normaliser_decay: float = 0.0, exclude: Exclude = None, dry_run: bool = False) -> None:
        super().__init__(exclude=exclude, dry_run=dry_run)
        self.normaliser_decay = in_range("normaliser_decay", normaliser_decay, 0, 1)
        self.initial = InitialValues(NORM_KINDS)
        self._norms: dict[str, tuple[Tensor, torch.Size]] = {}
        self._model: weakref.ref[nn.Module] | None = None
        self._weights: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._normalisers: list[Tensor] = []
        self._drawn_to: list[Tensor] = []

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the norms of what is new."""
        network = unwrap(strategy.model)
        if starts_anew(strategy, network, self._model):  # as GDumb's
            self._norms = {}
        self._model = weakref.ref(network)
        self._take(network)

    def follow_removal(self, strategy: Any, removal: Removal) -> None:
        """Go along with units that another plugin has removed physically: what is left keeps the norm it has."""
        self.initial.follow(removal)
        self._take(unwrap(strategy.model))

    def follow_renewal(self, strategy: Any, names: Collection[str]) -> None:
        """Go along with parameters that another plugin has drawn anew, and keep the norms that they have now."""
        self.initial.renew(strategy.model, names)
        self._norms = {name: known for name, known in self._norms.items() if name not in names}
        self._take(unwrap(strategy.model))

    def _take(self, network: nn.Module) -> None:
        """Look up what to project, and take in the norms of what is new."""
        spared = self.excluded.tensors(network)
        weights = {entry.name: entry.parameter for entry in trainable(network, WEIGHT_KINDS, spared)}
        self._norms = {
            name: (grown_norm(self._norms.get(name), weight), weight.shape) for name, weight in weights.items()
        }
        self._weights = list(weights.values())
        self._targets = [self._norms[name][0] for name in weights]
        if self.normaliser_decay > 0:
            entries = self.initial.update(network, spared)
            self._normalisers = [entry.parameter for entry in entries]
            self._drawn_to = [self.initial[entry.name] for entry in entries]

    def acts_on(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the weights that are projected, and the parameters of normalisers that are drawn back, by name."""
        spared = self.excluded.tensors(model)
        kinds = (*WEIGHT_KINDS, *(NORM_KINDS if self.normaliser_decay > 0 else ()))
        return {entry.name: entry.parameter for entry in trainable(unwrap(model), kinds, spared)}

    def summary(self, model: nn.Module) -> dict[str, float | None]:
        """Return, of a dry run, how much longer the weights are than they would be; else nothing."""
        if not self.dry_run or not self._weights:
            return {}
        length = float(total_norm([weight.detach() for weight in self._weights]))
        kept = float(torch.stack(self._targets).sum().sqrt())
        return {"relative_length": length / kept if kept > 0 else None}

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Project the weights."""
        self._steps += 1
        if self.dry_run:
            return
        keep_removed(strategy)  # what is removed counts for no norm
        project(self._weights, self._targets)
        if self.normaliser_decay > 0:
            draw_back(self._normalisers, self._drawn_to, self.normaliser_decay)
            keep_removed(strategy)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Report, and let go of the parameters, which may be replaced."""
        super().after_training_exp(strategy, *args, **kwargs)
        self._forget()

    def _forget(self) -> None:
        self._weights, self._targets, self._normalisers, self._drawn_to = [], [], [], []

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, the norms among it."""
        norms = {name: [norm.clone(), list(shape)] for name, (norm, shape) in self._norms.items()}
        return {**super().state_dict(), "norms": norms, "initial": self.initial.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self._norms = {name: (norm.clone(), torch.Size(shape)) for name, (norm, shape) in state["norms"].items()}
        self.initial.load_state_dict(state["initial"])
        network = self._model() if self._model is not None and self._weights else None
        if network is None:
            self._model = None
        else:  # in the middle of an experience, in which its weights are projected
            self._take(network)

    def __getstate__(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"_weights": [], "_targets": [], "_normalisers": [], "_drawn_to": []}
        return {**self.__dict__, "_model": None, **empty}
