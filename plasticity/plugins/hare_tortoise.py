"""Hare and tortoise as an Avalanche plugin."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from plasticity.errors import UserError
from plasticity.exclusion import Exclude
from plasticity.groups import unwrap
from plasticity.methods.hare_tortoise import HareTortoiseRule, Tortoise
from plasticity.methods.parameters import total_norm
from plasticity.plugins.arguments import change_rule
from plasticity.plugins.beside import starts_anew
from plasticity.plugins.removed import keep_removed
from plasticity.plugins.steps import StepPlugin
from plasticity.surgery.optimizer_state import forget_state
from plasticity.surgery.removal import Removal


class HareTortoisePlugin(StepPlugin):
    """Train a fast network, the hare, and use its moving average, the tortoise, to which it now and then goes back.

    The strategy's model is the hare while it trains. It holds the weights of the tortoise from the end of an experience
    (`after_training_exp`) to the beginning of the next (`before_train_dataset_adaptation`, before a head can grow), and
    during evaluations in between: whoever looks at `strategy.model` outside of training sees the network to use, with
    or without `strategy.eval`. See `plasticity.methods.hare_tortoise`.

    Args:
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
            They are not averaged: the tortoise has them as the hare.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: `momentum`, `reset_every`, `optimizer_state`; see `plasticity.methods.hare_tortoise.HareTortoiseRule`.

    Attributes:
        tortoise: The weights that the model does not hold at the moment.
        model_is_tortoise: Whether the strategy's model holds the weights of the tortoise.
        history: For every experience the number of steps and resets, and the distance of hare and tortoise at its end,
            over the length of the hare.

    Raises:
        UserError: If an argument is unknown or has no meaning; in training, if there is another such plugin.

    Source: Lee et al. 2024, arXiv 2406.02596.
    """

    method = "hare-tortoise"
    acts = ("moves", "remembers")

    def __init__(self, *, exclude: Exclude = None, dry_run: bool = False, **rule: Any) -> None:
        super().__init__(exclude=exclude, dry_run=dry_run)
        self.rule = change_rule(self, HareTortoiseRule(), rule)
        self.tortoise = Tortoise(self.excluded.tensors)
        self.model_is_tortoise = False
        self._iterations = 0
        self._resets = 0
        self._evaluating = False
        self._model: weakref.ref[nn.Module] | None = None

    # --- Avalanche's callbacks ---------------------------------------------------------------------------------

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Let the hare train."""
        if self.model_is_tortoise and not self._replaced(strategy):
            self.tortoise.exchange(strategy.model)
        self.model_is_tortoise = False

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Average the model that is now in place."""
        if any(isinstance(plugin, HareTortoisePlugin) and plugin is not self for plugin in strategy.plugins):
            raise UserError("a strategy can have one HareTortoisePlugin: each takes the other's tortoise for the hare")
        self.tortoise.follow(strategy.model, anew=self._replaced(strategy))
        self._model = weakref.ref(unwrap(strategy.model))

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Let the tortoise take a step, and the hare go back to it if it is time."""
        keep_removed(strategy)
        self.tortoise.update(self.rule.momentum)
        self._steps += 1
        self._iterations += 1
        if self.rule.reset_every is not None and self._iterations % self.rule.reset_every == 0:
            self._resets += 1
            if self.dry_run:
                return
            self.tortoise.give()
            keep_removed(strategy)
            if self.rule.optimizer_state == "clear":
                forget_state(strategy.optimizer, self.excluded.tensors(strategy.model))

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Put the tortoise in place."""
        super().after_training_exp(strategy, *args, **kwargs)
        self._resets = 0
        if not self.dry_run:
            self._exchange(strategy)
            self.model_is_tortoise = True
        self.tortoise.release()

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Evaluate the tortoise in the middle of training, too."""
        if self.tortoise.following and not self.model_is_tortoise and not self.dry_run:
            self._exchange(strategy)
            self.model_is_tortoise = self._evaluating = True

    def after_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Let the hare train on."""
        if self._evaluating:
            self.tortoise.exchange(strategy.model)
            self.tortoise.follow(strategy.model)
            self.model_is_tortoise = self._evaluating = False

    def follow_removal(self, strategy: Any, removal: Removal) -> None:
        """Go along with units that another plugin has removed physically."""
        self.tortoise.follow_removal(strategy.model, removal)

    def follow_renewal(self, strategy: Any, names: Collection[str]) -> None:
        """Go along with parameters that another plugin has drawn anew."""
        self.tortoise.renew(strategy.model, names)

    def acts_on(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters that are averaged, by qualified name."""
        averaged = self.tortoise.averaged(model)
        return {name: each for name, each in unwrap(model).named_parameters() if name in averaged}

    def _exchange(self, strategy: Any) -> None:
        self.tortoise.exchange(strategy.model)
        keep_removed(strategy)

    def _replaced(self, strategy: Any) -> bool:
        """Say whether a network that starts anew has taken the place of the one before, as GDumb's."""
        return starts_anew(strategy, unwrap(strategy.model), self._model)

    def summary(self, model: nn.Module) -> dict[str, float | None]:
        """Return how far apart the two are."""
        averaged = self.tortoise.averaged(model)
        names = [name for name, _ in unwrap(model).named_parameters() if name in averaged]
        hare, slow = [averaged[name] for name in names], [self.tortoise.values[name] for name in names]
        if not hare:
            return {"resets": self._resets, "relative_distance": 0.0}
        length, distance = float(total_norm(hare)), float(total_norm(list(torch._foreach_sub(hare, slow))))
        return {"resets": self._resets, "relative_distance": distance / length if length > 0 else distance}

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, with the weights that the model does not hold."""
        return {
            **super().state_dict(),
            "tortoise": self.tortoise.state_dict(),
            "model_is_tortoise": self.model_is_tortoise,
            "iterations": self._iterations,
            "resets": self._resets,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        network = self._model() if self._model is not None and self.tortoise.following else None
        self.tortoise.load_state_dict(state["tortoise"])
        self.model_is_tortoise = bool(state["model_is_tortoise"])
        self._iterations = int(state["iterations"])
        self._resets, self._evaluating = int(state["resets"]), False
        if network is None:
            self._model = None
        else:  # in the middle of an experience, in which it is averaged
            self.tortoise.follow(network)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}
