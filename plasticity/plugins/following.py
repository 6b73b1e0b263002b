"""What becomes of the other plugins of a strategy when units are removed physically."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from avalanche.training.plugins import EarlyStoppingPlugin, EWCPlugin, MASPlugin, SynapticIntelligencePlugin
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import unwrap
from plasticity.masks import Masks
from plasticity.methods.parameters import InitialValues
from plasticity.removal import Removal

_KNOWN = (EWCPlugin, MASPlugin, SynapticIntelligencePlugin, EarlyStoppingPlugin)  # will keep numbers for single weights


def refuse_followers(remover: object, strategy: Any) -> None:
    """Refuse plugins that keep numbers for single weights or units, and would go on with wrong ones.

    Masks follow a removal, initial values start anew, and networks that plugins keep are their own.

    Args:
        remover: The plugin that removes units.
        strategy: Its strategy.

    Raises:
        UserError: If there is such a plugin.
    """
    names = {name for name, _ in unwrap(strategy.model).named_parameters()}
    names |= {name.rpartition(".")[0] for name in names}  # layers, after which groups of units are named
    for plugin in strategy.plugins:
        if plugin is remover:
            continue
        if isinstance(plugin, _KNOWN) or any(_keeps(value, names) for value in vars(plugin).values()):
            raise UserError(
                f'{type(remover).__name__}(mode="shrink") changes the shapes of weights, but {type(plugin).__name__} '
                'keeps numbers for single weights or units: use mode="mask" beside it'
            )


def follow_removal(remover: object, strategy: Any, removal: Removal) -> None:
    """Let other plugins follow a removal: their masks, and what they have looked up for the network as it was.

    Args:
        remover: The plugin that removed units, which follows by itself.
        strategy: Its strategy.
        removal: What was removed.
    """
    for plugin in strategy.plugins:
        if plugin is remover:
            continue
        masks = getattr(plugin, "masks", None)
        if isinstance(masks, Masks):
            removal.slice(masks)
        for key in ("_bound", "_units"):
            if key in vars(plugin):
                setattr(plugin, key, None)


def _keeps(value: Any, names: set[str], depth: int = 3) -> bool:
    """Tell whether a value holds tensors by names of parameters or layers."""
    if isinstance(value, Masks | InitialValues | nn.Module | Optimizer) or depth == 0:
        return False
    if isinstance(value, Mapping):
        return any(
            (key in names and _is_numbers(held)) or _keeps(held, names, depth - 1) for key, held in value.items()
        )
    return any(_keeps(held, names, depth - 1) for held in value) if isinstance(value, list | tuple) else False


def _is_numbers(held: Any) -> bool:
    """Tell whether something is a tensor, or holds one, as Avalanche's ParamData does."""
    parts: Iterable[Any] = held if isinstance(held, list | tuple) else getattr(held, "__dict__", {}).values()
    return isinstance(held, Tensor) or any(isinstance(part, Tensor) for part in parts)
