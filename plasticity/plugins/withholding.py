"""Treatment is withheld where a network is not finite: what it does then says nothing of its units."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor

from plasticity.distributed import add_up, group_of
from plasticity.finiteness import nonfinite_weights
from plasticity.plugins.publishing import publish


def nonfinite_loss(strategy: Any) -> str | None:
    """Say that the loss of the latest mini-batch is not finite; None: it is, or there is none.

    Args:
        strategy: The strategy. All of its processes get an answer if one does.
    """
    loss = getattr(strategy, "loss", None)
    if not isinstance(loss, Tensor):
        return None
    (wrong,) = add_up([(~loss.detach().isfinite()).sum()], group_of(strategy.model))
    if not bool(wrong):
        return None
    value = float(loss.detach().sum())
    return f"the loss of the latest mini-batch is {'NaN or infinite' if math.isfinite(value) else value}"


def withhold(plugin: Any, strategy: Any, reason: str) -> dict[str, Any]:
    """Warn of a treatment that was not given, and tell the loggers.

    Args:
        plugin: Who would have treated.
        strategy: Its strategy.
        reason: Why not.

    Returns:
        What to note of it.
    """
    experience = int(strategy.experience.current_experience)
    warnings.warn(
        f"{type(plugin).__name__} treats nothing in experience {experience}: {reason}. "
        "The network may have diverged, and its units cannot be judged",
        stacklevel=3,
    )
    publish(strategy, plugin.method, {"withheld": 1.0})
    return {"experience": experience, "method": plugin.method, "withheld": reason, "units": {}}


def note_divergence(plugin: Any, strategy: Any) -> dict[str, str]:
    """Warn at the end of an experience if a network on which a plugin acts at every step has diverged.

    Args:
        plugin: The plugin.
        strategy: Its strategy.

    Returns:
        What to note of it; nothing if all weights are finite.
    """
    reason = nonfinite_weights(strategy.model)
    if reason is None:
        return {}
    experience = int(strategy.experience.current_experience)
    warnings.warn(
        f"{type(plugin).__name__}: the network has diverged in experience {experience}: {reason}", stacklevel=3
    )
    publish(strategy, plugin.method, {"diverged": 1.0})
    return {"diverged": reason}
