"""Avalanche's training epoch, with the same steps in the same order, without calling what does nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from avalanche.models import avalanche_forward
from avalanche.training.templates.problem_type.supervised_problem import SupervisedProblem
from avalanche.training.templates.update_type.sgd_update import SGDUpdate

from plasticity.loading.callbacks import Callbacks
from plasticity.loading.loader import TensorLoader


def quick_epoch(strategy: Any, **kwargs: Any) -> None:
    """Train for one epoch over the strategy's loader.

    Everything that a strategy has made its own (how it unpacks a mini-batch, its forward and backward pass, its loss,
    its step) is called by its name, so what is computed is bit for bit what `SGDUpdate.training_epoch` computes.

    Args:
        strategy: A strategy that has that epoch, see `takes_quick_epoch`.
        kwargs: What the strategy hands on to its plugins.
    """
    trigger, forward, unpacked = Callbacks(strategy).trigger, Forward(strategy), comes_unpacked(strategy)
    for mini_batch in strategy.dataloader:
        strategy.mbatch = mini_batch
        if strategy._stop_training:
            break
        if not unpacked:
            strategy._unpack_minibatch()
        trigger("before_training_iteration", **kwargs)

        strategy.optimizer.zero_grad()
        strategy.loss = strategy._make_empty_loss()

        trigger("before_forward", **kwargs)
        strategy.mb_output = forward()
        trigger("after_forward", **kwargs)

        strategy.loss += strategy.criterion()

        trigger("before_backward", **kwargs)
        strategy.backward()
        trigger("after_backward", **kwargs)

        trigger("before_update", **kwargs)
        strategy.optimizer_step()
        trigger("after_update", **kwargs)

        trigger("after_training_iteration", **kwargs)


def comes_unpacked(strategy: Any) -> bool:
    """Say whether mini-batches come as Avalanche's way of unpacking would leave them: lists, on the right device.

    Args:
        strategy: A strategy with the loader of an epoch.
    """
    loader = strategy.dataloader
    if getattr(strategy._unpack_minibatch, "__func__", None) is not SupervisedProblem._unpack_minibatch:
        return False
    # A device without a number is the current one.
    return isinstance(loader, TensorLoader) and loader.device == torch.empty(0, device=strategy.device).device


class Forward:
    """A strategy's forward pass, in which each experience is asked but once whether it has task labels.

    In Avalanche's own that is asked in every iteration, of a property that lists them. A forward pass of the strategy's
    is called as it is.

    Args:
        strategy: The strategy.
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self._experience: Any = self  # none that a strategy can have
        self._has_task_labels = False

    def __call__(self) -> Any:
        """Return the model's output for the strategy's mini-batch."""
        strategy = self.strategy
        forward = strategy.forward
        if getattr(forward, "__func__", None) is not SupervisedProblem.forward:
            return forward()
        if strategy.experience is not self._experience:
            self._experience = strategy.experience
            self._has_task_labels = hasattr(self._experience, "task_labels")
        if self._has_task_labels:
            return avalanche_forward(  # type: ignore[no-untyped-call]  # Avalanche does not annotate it
                strategy.model, strategy.mb_x, strategy.mb_task_id
            )
        return strategy.model(strategy.mb_x)


def takes_quick_epoch(strategy: Any) -> bool:
    """Say whether a strategy trains by Avalanche's ordinary epoch, which may be replaced.

    Args:
        strategy: A strategy.
    """
    own = vars(strategy).get("training_epoch")
    ours = isinstance(own, partial) and own.func is quick_epoch
    return (own is None or ours) and getattr(type(strategy), "training_epoch", None) is SGDUpdate.training_epoch


def use_quick_epoch(strategy: Any) -> None:
    """Let a strategy train by `quick_epoch` until `use_own_epoch`."""
    strategy.training_epoch = partial(quick_epoch, strategy)


def use_own_epoch(strategy: Any) -> None:
    """Let a strategy train as it does by itself."""
    if takes_quick_epoch(strategy):
        vars(strategy).pop("training_epoch", None)
