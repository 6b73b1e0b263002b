"""The strategies that come with the repository; plugins are imported when a run needs them."""

from typing import TYPE_CHECKING, Any

from strategies.registry import Context, register

if TYPE_CHECKING:
    from avalanche.training.plugins import SupervisedPlugin


def naive(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Fine-tuning: one experience after the other, nothing else."""
    return []


def fresh(context: Context) -> "list[SupervisedPlugin[Any]]":
    """A new network for every experience, with the same budget."""
    from strategies.fresh import FreshNetworkPlugin

    return [FreshNetworkPlugin(context.network)]


def replay(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Experience replay; 2,000 samples, as in Avalanche's reproduction of Split CIFAR-100."""
    from avalanche.training.plugins import ReplayPlugin

    return [ReplayPlugin(mem_size=2000)]


def synaptic_stripping(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Stripping between experiences, by the guarded rule."""
    from plasticity.plugins import SynapticStrippingPlugin

    return [SynapticStrippingPlugin(seed=context.seed)]


def synaptic_stripping_whitaker2023(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Stripping after each epoch, by the authors' rule (arXiv 2302.05818)."""
    from plasticity.plugins import SynapticStrippingPlugin

    return [SynapticStrippingPlugin(preset="whitaker2023", seed=context.seed)]


def hyper_hypo(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Hyper- and hypo-active units learn first, then the whole network."""
    from plasticity.plugins import HyperHypoPlugin

    return [HyperHypoPlugin(seed=context.seed)]


def hyper_hypo_random(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Its control: as many units, chosen at random."""
    from plasticity.plugins import HyperHypoPlugin

    return [HyperHypoPlugin(units="random", seed=context.seed)]


def redo(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Dormant units are made new every 1,000 iterations."""
    from plasticity.plugins import ReDoPlugin

    return [ReDoPlugin(seed=context.seed)]


for _name, _plugins, _summary in (
    ("naive", naive, "fine-tuning: one experience after the other, nothing else"),
    ("fresh", fresh, "a new network for every experience, with the same budget: what there is to recover"),
    ("replay", replay, "experience replay of 2,000 stored samples"),
    ("synaptic-stripping", synaptic_stripping, "strip dead units between experiences, by the guarded rule"),
    (
        "synaptic-stripping-whitaker2023",
        synaptic_stripping_whitaker2023,
        "strip dead units after each epoch, by the authors' rule",
    ),
    ("hyper-hypo", hyper_hypo, "units that fire nearly always or hardly ever learn first, then the whole network"),
    ("hyper-hypo-random", hyper_hypo_random, "its control: as many units, chosen at random"),
    ("redo", redo, "make dormant units new every 1,000 iterations"),
):
    register(_name, _plugins, _summary)
