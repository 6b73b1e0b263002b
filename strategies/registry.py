"""The register of strategies, and how names are combined."""

import inspect
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from plasticity.errors import UserError, unknown
from plasticity.values import shown

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
        online: Whether experiences are shown a few samples at a time.
    """

    network: Callable[[], nn.Module]
    seed: int
    epochs: int
    batch_size: int
    experiences: int
    online: bool = False


MakePlugins = Callable[..., "list[SupervisedPlugin[Any]]"]
NetworkChange = Callable[..., nn.Module]
OptimizerChoice = Callable[..., Optimizer]


@dataclass(frozen=True)
class Strategy:
    """A named way to train: what makes it differ from plain fine-tuning; arguments as in `register`."""

    name: str
    plugins: MakePlugins
    summary: str = ""
    network: NetworkChange | None = None
    optimizer: OptimizerChoice | None = None
    configurations: tuple[str, ...] = ("",)


STRATEGIES: dict[str, Strategy] = {}
LONGEST = 240
"""Bytes of a name; file systems take 255 and parts of a run have a few more."""


def register(
    name: str,
    plugins: MakePlugins,
    summary: str = "",
    *,
    network: NetworkChange | None = None,
    optimizer: OptimizerChoice | None = None,
    configurations: tuple[str, ...] = ("",),
) -> None:
    """Add a strategy under a name.

    Keyword arguments of the three functions are the strategy's options: where one is `strength`, the name can be
    written `mine:strength=0.1`.

    Args:
        name: Without `+`, which combines names, without `:`, which begins an option, and without `/`, since it names a
            folder.
        plugins: Gets the run's `Context` and makes its plugins.
        summary: One line for the list of strategies.
        network: Changes the architecture: gets a new network and an example of its positional inputs, and returns the
            network to train.
        optimizer: Replaces the benchmark's optimizer: gets the parameters, the kind of the benchmark's optimizer
            ("adam", "adamw" or "sgd") and its learning rate.
        configurations: What `python -m benchmarks tune` tries, each written as options, such as
            "tau=0.1:every=200"; "": none.

    Raises:
        UserError: If the name is taken or cannot be one.
    """
    if name in STRATEGIES:
        raise UserError(f"a strategy named {name!r} is registered already")
    if not name or name.startswith(".") or set(name) & set("+:=,/\\ "):
        raise UserError(f"{name!r} cannot name a strategy: use letters, digits and -")
    STRATEGIES[name] = Strategy(name, plugins, summary, network, optimizer, configurations)


def parse(combined: str) -> list[Strategy]:
    """Look up the strategies that a name such as "replay+redo:tau=0.1:every=200" combines, with their options set.

    An option's value is a number, true, false, null, or else text.

    Raises:
        UserError: If one is unknown (lists those known), named twice, has no such option, or if two of them choose an
            optimizer.
    """
    if set(combined) & set("/\\") or not combined.isprintable() or len(os.fsencode(combined)) > LONGEST:
        raise UserError(
            f"{shown(combined)} cannot name a folder, as strategies do: it must have no / and no \\, nothing that "
            f"cannot be printed, and at most {LONGEST} bytes"
        )
    found: list[Strategy] = []
    for part in combined.split("+"):
        name, *texts = part.split(":")
        if name not in STRATEGIES:
            raise UserError(f"{unknown('strategy', name, STRATEGIES)}; + combines them")
        if name in [strategy.name for strategy in found]:
            raise UserError(f"strategy {combined!r} names {name!r} twice")
        options = [_option(text, part) for text in texts]
        twice = [option for option, count in Counter(option for option, _ in options).items() if count > 1]
        if twice:
            raise UserError(f"{part!r} sets the option {twice[0]!r} twice")
        found.append(_with_options(STRATEGIES[name], part, dict(options)))
    choosing = [strategy.name for strategy in found if strategy.optimizer is not None]
    if len(choosing) > 1:
        raise UserError(f"{' and '.join(choosing)} both choose the optimizer, and a run has one")
    return found


def _option(text: str, part: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise UserError(f"{part!r}: an option is written NAME=VALUE, not {text!r}")
    return name, option_value(value)


def option_value(text: str) -> Any:
    """Return what the text of an option means: a number, true, false, null, or else text."""
    for read in (json.loads, float):  # JSON does not know .5
        try:
            return read(text)
        except (ValueError, RecursionError):
            pass
    return text


def _with_options(strategy: Strategy, part: str, options: Mapping[str, Any]) -> Strategy:
    """Set the options of those functions of a strategy that have them."""
    makers = {kind: getattr(strategy, kind) for kind in ("plugins", "network", "optimizer")}
    taken = {kind: _options_of(make) for kind, make in makers.items() if make is not None}
    for name in options:
        if not any(name in names or None in names for names in taken.values()):
            known = sorted({name for names in taken.values() for name in names if name is not None})
            there = f"there are: {', '.join(known)}" if known else "it has none"
            raise UserError(f"{part!r}: {strategy.name} has no option {name!r}; {there}")
    changed = {}
    for kind, names in taken.items():
        own = {name: value for name, value in options.items() if name in names or None in names}
        if own:
            changed[kind] = partial(_checked, part, makers[kind], own)
    return replace(strategy, **changed)


def _options_of(make: Callable[..., Any]) -> list[str | None]:
    """Return the names of a function's options; None among them: it checks names itself."""
    kinds = inspect.Parameter
    parameters = list(inspect.signature(make).parameters.values())
    named = [p.name for p in parameters if p.kind is kinds.KEYWORD_ONLY]
    return [*named, *(None for p in parameters if p.kind is kinds.VAR_KEYWORD)]


def _checked(part: str, make: Callable[..., Any], options: Mapping[str, Any], *arguments: Any) -> Any:
    try:
        return make(*arguments, **options)
    except UserError as error:
        raise UserError(f"{part!r}: {error}") from error
    except TypeError as error:
        raise UserError(f"{part!r}: {error}") from error


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


def choose_optimizer(
    combined: str, parameters: list[nn.Parameter], kind: str, learning_rate: float
) -> Optimizer | None:
    """Make the optimizer that a strategy asks for; None: the benchmark's own.

    Args:
        combined: Name of a strategy, or of several combined with `+`.
        parameters: What to train.
        kind: The run's optimizer, "adam", "adamw" or "sgd".
        learning_rate: Its step size.
    """
    for strategy in parse(combined):
        if strategy.optimizer is not None:
            return strategy.optimizer(parameters, kind, learning_rate)
    return None
