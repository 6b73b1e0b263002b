"""The register of strategies, and how names are combined."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from plasticity.errors import UserError

if TYPE_CHECKING:  # imports Avalanche, which takes seconds
    from avalanche.training.plugins import SupervisedPlugin


@dataclass(frozen=True)
class Context:
    """What a strategy may want to know of the run it is made for.

    Args:
        network: Makes another network like the run's own, drawn from PyTorch's global random state.
        seed: The run's seed.
        epochs: Passes over each experience.
        batch_size: Samples of new data in a mini-batch.
        experiences: Length of the stream.
    """

    network: Callable[[], nn.Module]
    seed: int
    epochs: int
    batch_size: int
    experiences: int


NetworkChange = Callable[[nn.Module, tuple[Any, ...]], nn.Module]
OptimizerChoice = Callable[[list[nn.Parameter], float], Optimizer]


@dataclass(frozen=True)
class Strategy:
    """A named way to train: what makes it differ from plain fine-tuning; arguments as in `register`."""

    name: str
    plugins: "Callable[[Context], list[SupervisedPlugin[Any]]]"
    summary: str = ""
    network: NetworkChange | None = None
    optimizer: OptimizerChoice | None = None


STRATEGIES: dict[str, Strategy] = {}


def register(
    name: str,
    plugins: "Callable[[Context], list[SupervisedPlugin[Any]]]",
    summary: str = "",
    *,
    network: NetworkChange | None = None,
    optimizer: OptimizerChoice | None = None,
) -> None:
    """Add a strategy under a name.

    Args:
        name: Without `+`, which combines names, and without `/`, since it names a folder.
        plugins: Makes the plugins for a run.
        summary: One line for the list of strategies.
        network: Changes the architecture: gets a new network and an example of its positional inputs, and returns the
            network to train.
        optimizer: Replaces the benchmark's optimizer: gets the parameters and the benchmark's learning rate.

    Raises:
        UserError: If the name is taken or cannot be one.
    """
    if name in STRATEGIES:
        raise UserError(f"a strategy named {name!r} is registered already")
    if not name or name.startswith(".") or set(name) & set("+,/\\ "):
        raise UserError(f"{name!r} cannot name a strategy: use letters, digits and -")
    STRATEGIES[name] = Strategy(name, plugins, summary, network, optimizer)


def parse(combined: str) -> list[Strategy]:
    """Look up the strategies that a name such as "replay+synaptic-stripping" combines.

    Raises:
        UserError: If one is unknown (lists those known), named twice, or if two of them choose an optimizer.
    """
    names = combined.split("+")
    for name in names:
        if name not in STRATEGIES:
            close = difflib.get_close_matches(name, STRATEGIES, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"unknown strategy {name!r}{hint}: known are {', '.join(STRATEGIES)}; + combines them")
        if names.count(name) > 1:
            raise UserError(f"strategy {combined!r} names {name!r} twice")
    found = [STRATEGIES[name] for name in names]
    choosing = [strategy.name for strategy in found if strategy.optimizer is not None]
    if len(choosing) > 1:
        raise UserError(f"{' and '.join(choosing)} both choose the optimizer, and a run has one")
    return found


def build_plugins(combined: str, context: Context) -> "list[SupervisedPlugin[Any]]":
    """Make the plugins of a strategy, or of several combined with `+`, in the order of their names."""
    return [plugin for strategy in parse(combined) for plugin in strategy.plugins(context)]


def change_network(combined: str, network: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    """Let the strategies that a name combines change a new network, in the order of their names.

    Args:
        combined: Name of a strategy, or of several combined with `+`.
        network: The network as the benchmark has it.
        example: Its positional inputs, a few samples.
    """
    for strategy in parse(combined):
        if strategy.network is not None:
            network = strategy.network(network, example)
    return network


def choose_optimizer(combined: str, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer | None:
    """Make the optimizer that a strategy asks for; None: the benchmark's own."""
    for strategy in parse(combined):
        if strategy.optimizer is not None:
            return strategy.optimizer(parameters, learning_rate)
    return None
