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


def shrink_perturb(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Shrink and perturb before each experience, with a new optimizer (arXiv 1910.08475)."""
    from plasticity.plugins import ShrinkPerturbPlugin

    return [ShrinkPerturbPlugin(seed=context.seed)]


def shrink_perturb_step(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Shrink and perturb a little at every step."""
    from plasticity.plugins import ShrinkPerturbPlugin

    return [ShrinkPerturbPlugin("step", seed=context.seed)]


def shrink_perturb_interpolate(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Go most of the way back to the initial weights before each experience."""
    from plasticity.plugins import ShrinkPerturbPlugin

    return [ShrinkPerturbPlugin("interpolate", seed=context.seed)]


def l2_init(context: Context) -> "list[SupervisedPlugin[Any]]":
    """L2 Init (arXiv 2308.11958)."""
    from plasticity.plugins import L2InitPlugin

    return [L2InitPlugin()]


def l2(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Plain L2 regularisation."""
    from plasticity.plugins import L2Plugin

    return [L2Plugin()]


def dash(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Direction-aware shrinking (arXiv 2410.23495)."""
    from plasticity.plugins import DASHPlugin

    return [DASHPlugin(seed=context.seed)]


def fire(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Orthogonal weights before each experience (arXiv 2602.08040)."""
    from plasticity.plugins import FIREPlugin

    return [FIREPlugin()]


def spectral_regularization(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Spectral regularisation (arXiv 2406.06811)."""
    from plasticity.plugins import SpectralRegularizationPlugin

    return [SpectralRegularizationPlugin(seed=context.seed)]


def normalize_and_project(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Weights keep their initial norms (arXiv 2407.01800)."""
    from plasticity.plugins import NormalizeAndProjectPlugin

    return [NormalizeAndProjectPlugin()]


def hare_tortoise(context: Context) -> "list[SupervisedPlugin[Any]]":
    """A fast network and its average (arXiv 2406.02596)."""
    from plasticity.plugins import HareTortoisePlugin

    return [HareTortoisePlugin()]


def continual_backprop(context: Context) -> "list[SupervisedPlugin[Any]]":
    """The least useful units are made new, a few at a time."""
    from plasticity.plugins import ContinualBackpropPlugin

    return [ContinualBackpropPlugin(seed=context.seed)]


def demon_pruning(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Units are pushed to die, and the dead ones masked (arXiv 2403.07688)."""
    from plasticity.plugins import DemonPruningPlugin

    return [DemonPruningPlugin(seed=context.seed)]


def demon_pruning_shrink(context: Context) -> "list[SupervisedPlugin[Any]]":
    """The same, but dead units are removed physically."""
    from plasticity.plugins import DemonPruningPlugin

    return [DemonPruningPlugin("shrink", seed=context.seed)]


def self_normalized_resets(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Units that are silent for longer than is usual for them are made new."""
    from plasticity.plugins import SelfNormalizedResetsPlugin

    return [SelfNormalizedResetsPlugin(seed=context.seed)]


def gradient_dormancy(context: Context) -> "list[SupervisedPlugin[Any]]":
    """Units that hardly get a gradient are made new every 1,000 iterations."""
    from plasticity.plugins import GradientDormancyPlugin

    return [GradientDormancyPlugin(seed=context.seed)]


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
    ("shrink-perturb", shrink_perturb, "shrink weights and add a new draw of them before each experience"),
    ("shrink-perturb-step", shrink_perturb_step, "shrink weights and add noise at every step"),
    (
        "shrink-perturb-interpolate",
        shrink_perturb_interpolate,
        "go most of the way back to the initial weights before each experience",
    ),
    ("l2-init", l2_init, "a penalty on the distance from the initial weights"),
    ("l2", l2, "a penalty on the length of the weights, as a control"),
    ("dash", dash, "shrink weights that do not point where the new data want them to go"),
    ("fire", fire, "make weight matrices orthogonal before each experience"),
    ("spectral-regularization", spectral_regularization, "a penalty that keeps largest singular values near 1"),
    ("normalize-and-project", normalize_and_project, "weight matrices keep their initial norms"),
    ("hare-tortoise", hare_tortoise, "train a fast network, use its average, and go back to it at times"),
    (
        "continual-backprop",
        continual_backprop,
        "make the least useful mature units new, a few at a time, in every iteration",
    ),
    ("demon-pruning", demon_pruning, "push units to die on a schedule, and mask the dead ones"),
    ("demon-pruning-shrink", demon_pruning_shrink, "the same, but remove dead units so that the network shrinks"),
    (
        "self-normalized-resets",
        self_normalized_resets,
        "make units new that are silent for longer than is usual for them",
    ),
    ("gradient-dormancy", gradient_dormancy, "make units new that hardly get a gradient, every 1,000 iterations"),
):
    register(_name, _plugins, _summary)
