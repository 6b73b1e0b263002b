"""What becomes of the other plugins of a strategy when one of them changes the network beneath them.

A plugin that keeps numbers for single weights or units can say how to go along with that, in methods that are called if
it has them:

    follow_removal(strategy, removal)   units were removed physically, see `plasticity.surgery.removal.Removal`
    follow_renewal(strategy, names)     parameters of these qualified names were drawn anew, as at the start
    follow_new_units(strategy, units)   units were made new: their numbers by group name

One that cannot follow a removal, and is known to keep such numbers or says so by `knows_units = True`, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from avalanche.training.plugins import EarlyStoppingPlugin, EWCPlugin, MASPlugin, SynapticIntelligencePlugin
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import unwrap
from plasticity.surgery.masks import Masks
from plasticity.surgery.removal import Removal

_KNOWN = (EWCPlugin, MASPlugin, SynapticIntelligencePlugin, EarlyStoppingPlugin)  # will keep numbers for single weights


def refuse_followers(remover: object, strategy: Any) -> None:
    """Refuse plugins that keep numbers for single weights or units, and would go on with wrong ones.

    Masks follow a removal, plugins with a method for it do, and networks that plugins keep are their own.

    Args:
        remover: The plugin that removes units.
        strategy: Its strategy.

    Raises:
        UserError: If there is such a plugin.
    """
    names = {name for name, _ in unwrap(strategy.model).named_parameters()}
    names |= {name.rpartition(".")[0] for name in names}  # layers, after which groups of units are named
    for plugin in strategy.plugins:
        if plugin is remover or hasattr(plugin, "follow_removal"):
            continue
        known = isinstance(plugin, _KNOWN) or getattr(plugin, "knows_units", False)
        if known or any(_keeps(value, names) for value in vars(plugin).values()):
            raise UserError(
                f'{type(remover).__name__}(mode="shrink") changes the shapes of weights, but {type(plugin).__name__} '
                'keeps numbers for single weights or units: use mode="mask" beside it'
            )


def follow_removal(remover: object, strategy: Any, removal: Removal) -> None:
    """Let other plugins follow a removal.

    Args:
        remover: The plugin that removed units, which follows by itself.
        strategy: Its strategy.
        removal: What was removed.
    """
    for plugin in strategy.plugins:
        if plugin is remover:
            continue
        follow = getattr(plugin, "follow_removal", None)
        masks = getattr(plugin, "masks", None)
        if follow is not None:
            follow(strategy, removal)
        elif isinstance(masks, Masks):
            removal.slice(masks)
        if "_units" in vars(plugin):
            plugin._units = None


def tell(teller: object, strategy: Any, method: str, change: Any) -> None:
    """Call a method, such as `follow_renewal`, of the other plugins that have it.

    Args:
        teller: The plugin that changed something.
        strategy: Its strategy.
        method: Name of the method.
        change: What it is told.
    """
    for plugin in strategy.plugins:
        follow = getattr(plugin, method, None)
        if plugin is not teller and follow is not None:
            follow(strategy, change)


def _keeps(value: Any, names: set[str], depth: int = 3) -> bool:
    """Tell whether a value holds tensors by names of parameters or layers."""
    if isinstance(value, Masks | nn.Module | Optimizer) or depth == 0:
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
