"""Avalanche's training epoch, with the same steps in the same order, without calling what does nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

from avalanche.training.templates.update_type.sgd_update import SGDUpdate

from plasticity.loading.callbacks import Callbacks


def quick_epoch(strategy: Any, **kwargs: Any) -> None:
    """Train for one epoch over the strategy's loader.

    Everything that a strategy may have made its own (its forward and backward pass, its loss, its step) is called by
    its name, so what is computed is bit for bit what `SGDUpdate.training_epoch` computes.

    Args:
        strategy: A strategy that has that epoch, see `takes_quick_epoch`.
        kwargs: What the strategy hands on to its plugins.
    """
    trigger = Callbacks(strategy).trigger
    for mini_batch in strategy.dataloader:
        strategy.mbatch = mini_batch
        if strategy._stop_training:
            break
        strategy._unpack_minibatch()
        trigger("before_training_iteration", **kwargs)

        strategy.optimizer.zero_grad()
        strategy.loss = strategy._make_empty_loss()

        trigger("before_forward", **kwargs)
        strategy.mb_output = strategy.forward()
        trigger("after_forward", **kwargs)

        strategy.loss += strategy.criterion()

        trigger("before_backward", **kwargs)
        strategy.backward()
        trigger("after_backward", **kwargs)

        trigger("before_update", **kwargs)
        strategy.optimizer_step()
        trigger("after_update", **kwargs)

        trigger("after_training_iteration", **kwargs)


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
