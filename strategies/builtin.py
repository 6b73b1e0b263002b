"""The strategies that are plugins, with the configurations that tuning tries; imported when a run needs them."""

import inspect
from typing import TYPE_CHECKING, Any

from plasticity.errors import UserError
from plasticity.values import check_count
from strategies.registry import Context, MakePlugins, register

if TYPE_CHECKING:
    from avalanche.training.plugins import SupervisedPlugin


def naive(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Fine-tuning: one experience after the other, nothing else."""
    return []


def fresh(context: Context) -> "list[SupervisedPlugin[Any]]":
    """A new network for every experience, with the same budget."""
    from strategies.fresh import FreshNetworkPlugin

    return [FreshNetworkPlugin(context.network)]


def replay(context: Context, *, mem_size: int = 2000) -> "list[SupervisedPlugin[Any]]":
    """Experience replay; 2,000 samples, as in Avalanche's reproduction of Split CIFAR-100.

    Of each experience equally many; of an online stream a random choice of all samples so far, since Avalanche takes
    every few samples for an experience of their own.
    """
    check_count("mem_size", mem_size)
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.storage_policy import ReservoirSamplingBuffer

    buffer = ReservoirSamplingBuffer(max_size=mem_size) if context.online else None
    return [ReplayPlugin(mem_size=mem_size, storage_policy=buffer)]


def plugin(name: str, **defaults: Any) -> MakePlugins:
    """Return what makes one plugin of this library; the arguments of its class are the strategy's options.

    Args:
        name: Of a class in `plasticity.plugins`; if it takes a seed, it gets the run's.
        **defaults: Arguments, unless the options say otherwise.
    """

    def make(context: Context, **options: Any) -> "list[SupervisedPlugin[Any]]":
        import plasticity.plugins

        if "groups" in options:
            raise UserError("groups cannot be declared in the name of a strategy; make the plugin in Python")
        kind = getattr(plasticity.plugins, name)
        parameters = inspect.signature(kind).parameters
        seed = {"seed": context.seed} if "seed" in parameters else {}
        unknown = sorted(set(options) - set(parameters))
        if unknown and all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
            raise UserError(f"{name} has no argument {unknown[0]!r}; there are: {', '.join(parameters)}")
        return [kind(**{**defaults, **seed, **options})]

    return make


register("naive", naive, "fine-tuning: one experience after the other, nothing else")
register("fresh", fresh, "a new network for every experience, with the same budget: what there is to recover")
register("replay", replay, "experience replay of 2,000 stored samples")

_RECYCLING = ("", "tau=0.1", "every=200", "every=200:tau=0.1")
_HYPER_HYPO = ("", "percent=10", "adapt_share=0.5", "mode=prune")
_STRENGTHS = ("", "strength=0.001", "strength=0.0001", "strength=0.00001")  # the sources' is 0.01
_DEMON = ("", "regularisation=0.01", "regularisation=0.0001", "regularisation=0.00001")

for _name, _plugins, _summary, _configurations in (
    (
        "synaptic-stripping",
        plugin("SynapticStrippingPlugin"),
        "strip dead units between experiences, by the guarded rule",
        ("", "fraction=0.02", "fraction=0.1", "every=epoch"),
    ),
    (
        "synaptic-stripping-whitaker2023",
        plugin("SynapticStrippingPlugin", preset="whitaker2023"),
        "strip dead units after each epoch, by the authors' rule",
        ("", "fraction=0.02", "fraction=0.1", "every=experience"),
    ),
    (
        "hyper-hypo",
        plugin("HyperHypoPlugin"),
        "units that fire nearly always or hardly ever learn first, then the whole network",
        _HYPER_HYPO,
    ),
    (
        "hyper-hypo-random",
        plugin("HyperHypoPlugin", units="random"),
        "its control: as many units, chosen at random",
        _HYPER_HYPO,
    ),
    ("redo", plugin("ReDoPlugin"), "make dormant units new every 1,000 iterations", _RECYCLING),
    (
        "shrink-perturb",
        plugin("ShrinkPerturbPlugin"),
        "shrink weights and add a new draw of them before each experience",
        ("", "shrink=0.6", "shrink=0.8", "shrink=0.8:perturb=0.01"),
    ),
    (
        "shrink-perturb-step",
        plugin("ShrinkPerturbPlugin", variant="step"),
        "shrink weights and add noise at every step",
        ("", "decay=0.001", "noise=0.001", "decay=0.001:noise=0.03"),
    ),
    (
        "shrink-perturb-interpolate",
        plugin("ShrinkPerturbPlugin", variant="interpolate"),
        "go most of the way back to the initial weights before each experience",
        ("", "strength=0.2", "strength=0.4", "strength=0.6"),
    ),
    ("l2-init", plugin("L2InitPlugin"), "a penalty on the distance from the initial weights", _STRENGTHS),
    ("l2", plugin("L2Plugin"), "a penalty on the length of the weights, as a control", _STRENGTHS),
    (
        "dash",
        plugin("DASHPlugin"),
        "shrink weights that do not point where the new data want them to go",
        ("", "threshold=0.1", "threshold=0.5", "threshold=0.8"),
    ),
    (
        "fire",
        plugin("FIREPlugin"),
        "make weight matrices orthogonal before each experience",
        ("", "strength=0.5", "optimizer_state=keep", "strength=0.5:optimizer_state=keep"),
    ),
    (
        "spectral-regularization",
        plugin("SpectralRegularizationPlugin"),
        "a penalty that keeps largest singular values near 1",
        ("", "strength=0.0001", "strength=0.01", "strength=0.1"),
    ),
    (
        "hare-tortoise",
        plugin("HareTortoisePlugin"),
        "train a fast network, use its average, and go back to it at times",
        ("", "momentum=0.999", "reset_every=200", "momentum=0.999:reset_every=200"),
    ),
    (
        "continual-backprop",
        plugin("ContinualBackpropPlugin"),
        "make the least useful mature units new, a few at a time, in every iteration",
        ("", "replacement_rate=0.001", "replacement_rate=0.01", "maturity=1000:replacement_rate=0.001"),
    ),
    (
        "demon-pruning",
        plugin("DemonPruningPlugin"),
        "push units to die on a schedule, and mask the dead ones",
        _DEMON,
    ),
    (
        "demon-pruning-shrink",
        plugin("DemonPruningPlugin", mode="shrink"),
        "the same, but remove dead units so that the network shrinks",
        _DEMON,
    ),
    (
        "self-normalized-resets",
        plugin("SelfNormalizedResetsPlugin"),
        "make units new that are silent for longer than is usual for them",
        ("", "percentile=0.95", "maximum_age=1000", "maximum_age=1000:percentile=0.95"),
    ),
    (
        "gradient-dormancy",
        plugin("GradientDormancyPlugin"),
        "make units new that hardly get a gradient, every 1,000 iterations",
        _RECYCLING,
    ),
    (
        "adaptive",
        plugin("AdaptivePlugin"),
        "make dead units new where there are many, and do more where learning falls behind or weights have grown",
        ("", "dead=0.3", "growth=1.5", "growth=3"),
    ),
):
    register(_name, _plugins, _summary, configurations=_configurations)
