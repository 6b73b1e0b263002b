"""Strategies by name, each with the hyperparameters of its source; `+` combines them: "replay+synaptic-stripping".

A strategy of your own joins by one line. Its function gets a `Context` and returns Avalanche plugins:

    register("ewc", lambda context: [EWCPlugin(ewc_lambda=0.4)], "elastic weight consolidation")
"""

from strategies.registry import (
    STRATEGIES,
    Context,
    Strategy,
    build_plugins,
    change_network,
    choose_optimizer,
    parse,
    register,
)

__all__ = [
    "STRATEGIES",
    "Context",
    "Strategy",
    "build_plugins",
    "change_network",
    "choose_optimizer",
    "parse",
    "register",
]

from strategies import builtin as _builtin  # noqa: F401  # registers the strategies that come with the repository
from strategies import networks as _networks  # noqa: F401  # likewise
