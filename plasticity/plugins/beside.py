"""Which of Avalanche's own strategies and plugins leave no room for what a plugin does, and why.

A plugin says what it does in its attribute `acts`; what cannot be right beside it is refused before the first step.
Methods that go along with each other's changes are in `plasticity.plugins.following`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from avalanche.distributed import DistributedHelper
from avalanche.models.packnet import PackNetPlugin
from avalanche.training.plugins import CWRStarPlugin, FromScratchTrainingPlugin, GDumbPlugin, LFLPlugin
from avalanche.training.supervised import SCR, JointTraining
from avalanche.training.supervised.icarl import _ICaRLPlugin
from avalanche.training.templates import SupervisedMetaLearningTemplate
from torch import nn

from plasticity.distributed import group_of
from plasticity.errors import UserError

ACTS = frozenset("between penalises moves remembers renews removes shrinks rebuilds alone labels losses".split())
"""What a plugin can do.

"between": it acts before an experience. "penalises": it adds to gradients. "moves": it writes weights. "remembers": it
keeps values of weights from the beginning of an experience. "renews": it makes units new. "removes": it keeps
connections or units removed. "shrinks": it changes shapes of weights. "rebuilds": it adds modules to the network.
"alone": for a while it lets only some weights learn. "labels": it chooses samples of each mini-batch to learn from.
"losses": it computes losses itself.
"""


class Conflict(NamedTuple):
    """What cannot be beside a plugin.

    Attributes:
        name: As the documentation calls it.
        stands: Tells from a plugin and its strategy whether it is there.
        acts: What a plugin must do to be refused.
        reason: Why, of a plugin called {plugin}.
    """

    name: str
    stands: Callable[[object, Any], bool]
    acts: frozenset[str]
    reason: str


def _is(kind: type) -> Callable[[object, Any], bool]:
    return lambda plugin, strategy: isinstance(strategy, kind)


def _has(kind: type) -> Callable[[object, Any], bool]:
    return lambda plugin, strategy: any(isinstance(other, kind) for other in strategy.plugins)


def _started_anew_behind(plugin: object, strategy: Any) -> bool:
    plugins = list(strategy.plugins)
    return any(isinstance(other, FromScratchTrainingPlugin) for other in plugins[plugins.index(plugin) :])


CONFLICTS: tuple[Conflict, ...] = (
    Conflict(
        "several processes",
        lambda plugin, strategy: DistributedHelper.world_size > 1 and group_of(strategy.model) is None,
        ACTS,
        "Avalanche gives each its part of the data, but nobody averages gradients: make the strategy's model a "
        "DistributedDataParallel",
    ),
    Conflict(
        "DistributedDataParallel",
        lambda plugin, strategy: group_of(strategy.model) is not None,
        frozenset({"shrinks"}),
        'it averages gradients of the shapes that it knows: use mode="mask"',
    ),
    Conflict(
        "DistributedDataParallel",
        lambda plugin, strategy: group_of(strategy.model) is not None,
        frozenset({"labels"}),
        "self_label would choose the most confident samples of each process apart",
    ),
    Conflict(
        "JointTraining",
        _is(JointTraining),
        frozenset({"between"}),
        "JointTraining has one experience only, and {plugin} would act between two",
    ),
    Conflict(
        "LaMAML, MER",
        _is(SupervisedMetaLearningTemplate),
        ACTS,
        "the strategy updates its network in inner loops that {plugin} does not see",
    ),
    Conflict(
        "FromScratchTraining",
        _started_anew_behind,
        frozenset({"between", "remembers", "removes", "rebuilds"}),
        "FromScratchTrainingPlugin undoes what {plugin} does before an experience: use "
        "Naive(plugins=[FromScratchTrainingPlugin(), {plugin}(...)]), in this order",
    ),
    Conflict(
        "GDumb",
        _has(GDumbPlugin),
        frozenset({"rebuilds"}),
        "GDumbPlugin begins every experience with a network as at the start, without what {plugin} has added",
    ),
    Conflict(
        "FromScratchTraining",
        _has(FromScratchTrainingPlugin),
        frozenset({"rebuilds"}),
        "FromScratchTrainingPlugin begins every experience with weights as at the start, but {plugin} adds to them",
    ),
    Conflict(
        "CWR*",
        _has(CWRStarPlugin),
        ACTS - {"penalises"},
        "CWRStarPlugin freezes all layers but one after the first experience, and puts back the weights of that one "
        "that it has kept",
    ),
    Conflict(
        "PackNet",
        _has(PackNetPlugin),
        ACTS,
        "PackNetPlugin keeps the weights of earlier tasks as they are, and chooses itself which ones learn",
    ),
    Conflict(
        "LFL",
        _has(LFLPlugin),
        frozenset({"renews", "rebuilds"}),
        "LFLPlugin freezes the last layer after the first experience, so that it cannot learn to use what is new",
    ),
    Conflict(
        "LFL",
        _has(LFLPlugin),
        frozenset({"shrinks"}),
        "LFLPlugin compares the last hidden layer with that of the experience before, which has more units",
    ),
    Conflict(
        "iCaRL",
        _has(_ICaRLPlugin),
        frozenset({"rebuilds", "shrinks"}),
        "iCaRL classifies by means of features, and {plugin} changes what the features are",
    ),
    Conflict(
        "SCR",
        _is(SCR),
        frozenset({"rebuilds", "shrinks"}),
        "SCR classifies by means of features, and {plugin} changes what the features are",
    ),
    Conflict(
        "iCaRL",
        _has(_ICaRLPlugin),
        frozenset({"losses", "labels"}),
        "iCaRL's loss depends on the mini-batch before it, and {plugin} needs that of outputs and labels alone",
    ),
    Conflict(
        "SCR",
        _is(SCR),
        frozenset({"losses", "labels"}),
        "SCR's loss compares views of a sample, and {plugin} needs that of outputs and labels alone",
    ),
)


def acts_of(plugin: Any) -> frozenset[str]:
    """Return what a plugin does."""
    return frozenset({*plugin.acts, *(("between",) if getattr(plugin, "between", False) else ())})


def refuse_conflicts(plugin: object, strategy: Any) -> None:
    """Refuse a strategy, or another plugin of it, beside which a plugin cannot be right.

    Args:
        plugin: The plugin.
        strategy: Its strategy.

    Raises:
        UserError: If there is such a one.
    """
    acts = acts_of(plugin)
    for conflict in CONFLICTS:
        if acts & conflict.acts and conflict.stands(plugin, strategy):
            name = type(plugin).__name__
            raise UserError(f"{name} cannot work with {conflict.name}: {conflict.reason.format(plugin=name)}")


def refuse_empty(plugin: object, strategy: Any) -> None:
    """Refuse to train on nothing, which data loaders answer with an error about their own arguments.

    Raises:
        UserError: If the strategy's experience has no samples.
    """
    if len(strategy.adapted_dataset) == 0:
        number = int(strategy.experience.current_experience)
        raise UserError(f"{type(plugin).__name__}: experience {number} has no training samples; leave it out")


def starts_anew(strategy: Any, network: nn.Module, known: weakref.ref[nn.Module] | None) -> bool:
    """Tell at the beginning of an experience whether the network starts anew, so that what is known of it is not true.

    Args:
        strategy: The strategy.
        network: Its network.
        known: The network of the experience before; None: there was none.

    Returns:
        Whether another network has taken its place, as with GDumb, or it has got its first values again.
    """
    replaced = known is not None and known() is not network
    return replaced or any(isinstance(other, FromScratchTrainingPlugin) for other in strategy.plugins)
