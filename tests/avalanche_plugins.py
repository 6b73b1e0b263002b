"""The plugins by name, each as it acts within a few mini-batches, and beside which of Avalanche's it is refused."""

from functools import partial

from plasticity import plugins as library

PLUGINS = {
    "synaptic-stripping": library.SynapticStrippingPlugin,
    "synaptic-stripping-whitaker2023": partial(library.SynapticStrippingPlugin, "whitaker2023"),
    "hyper-hypo": partial(library.HyperHypoPlugin, percent=20, adapt_share=0.5),
    "hyper-hypo-random": partial(library.HyperHypoPlugin, "prune", percent=20, units="random"),
    "demon-pruning": partial(library.DemonPruningPlugin, noise_std=0.01),
    "demon-pruning-shrink": partial(library.DemonPruningPlugin, "shrink", noise_std=0.01),
    "redo": partial(library.ReDoPlugin, every=2),
    "continual-backprop": partial(library.ContinualBackpropPlugin, replacement_rate=0.1, maturity=1),
    "self-normalized-resets": partial(
        library.SelfNormalizedResetsPlugin, maximum_age=6, check_every=1, maximum_share=1.0
    ),
    "gradient-dormancy": partial(library.GradientDormancyPlugin, every=2, batches=2),
    "shrink-perturb": library.ShrinkPerturbPlugin,
    "shrink-perturb-step": partial(library.ShrinkPerturbPlugin, "step"),
    "shrink-perturb-interpolate": partial(library.ShrinkPerturbPlugin, "interpolate"),
    "dash": library.DASHPlugin,
    "fire": library.FIREPlugin,
    "l2": library.L2Plugin,
    "l2-init": library.L2InitPlugin,
    "spectral-regularization": library.SpectralRegularizationPlugin,
    "normalize-and-project": partial(library.NormalizeAndProjectPlugin, normaliser_decay=0.1),
    "hare-tortoise": partial(library.HareTortoisePlugin, momentum=0.9, reset_every=2),
    "plasticity-injection": library.PlasticityInjectionPlugin,
    "adaptive": partial(library.AdaptivePlugin, dead=0.01),
}
"""Each with arguments with which it acts within a few mini-batches."""

IDLE = {
    "hyper-hypo": partial(library.HyperHypoPlugin, percent=0),
    "demon-pruning": partial(library.DemonPruningPlugin, regularisation=0.0, noise_std=0.0),
    "redo": partial(library.ReDoPlugin, every=2, maximum_share=0),
    "continual-backprop": partial(library.ContinualBackpropPlugin, replacement_rate=0),
    "self-normalized-resets": partial(library.SelfNormalizedResetsPlugin, maximum_share=0),
    "gradient-dormancy": partial(library.GradientDormancyPlugin, every=2, batches=2, maximum_share=0),
    "shrink-perturb": partial(library.ShrinkPerturbPlugin, shrink=1, perturb=0),
    "dash": partial(library.DASHPlugin, threshold=1),
    "fire": partial(library.FIREPlugin, strength=0),
    "l2": partial(library.L2Plugin, 0),
    "l2-init": partial(library.L2InitPlugin, 0),
    "spectral-regularization": partial(library.SpectralRegularizationPlugin, 0),
    "hare-tortoise": partial(library.HareTortoisePlugin, momentum=0),  # the tortoise is the hare
    "plasticity-injection": partial(library.PlasticityInjectionPlugin, 99),
}
"""The same with arguments with which they change nothing."""

STEPS = {"l2", "l2-init", "spectral-regularization"}
BETWEEN = {
    "synaptic-stripping",
    "hyper-hypo",
    "hyper-hypo-random",
    "shrink-perturb",
    "shrink-perturb-interpolate",
    "dash",
    "fire",
    "plasticity-injection",
    "adaptive",
}
RENEW = {"redo", "continual-backprop", "self-normalized-resets", "gradient-dormancy", "adaptive"}
NUMBERS_BY_WEIGHT = "changes the shapes of weights"
REFUSED = {
    **{name: {"demon-pruning-shrink": NUMBERS_BY_WEIGHT} for name in ("EWC", "SI", "MAS")},
    **{
        name: {
            **dict.fromkeys(("demon-pruning-shrink", "plasticity-injection"), "means of features"),
            "dash": "needs that of outputs and labels alone",
        }
        for name in ("iCaRL", "SCR")
    },
    "LFL": {
        "demon-pruning-shrink": "which has more units",
        **dict.fromkeys((*RENEW, "plasticity-injection"), "freezes the last layer"),
    },
    "CWR*": dict.fromkeys(set(PLUGINS) - STEPS, "freezes all layers but one"),
    "PackNet": dict.fromkeys(PLUGINS, "keeps the weights of earlier tasks"),
    "JointTraining": dict.fromkeys(BETWEEN, "one experience only"),
    "GDumb": {"plasticity-injection": "as at the start"},
    "FromScratch": {
        **dict.fromkeys(
            BETWEEN
            | {
                "synaptic-stripping-whitaker2023",
                "demon-pruning",
                "demon-pruning-shrink",
                "normalize-and-project",
                "hare-tortoise",
            },
            "in this order",
        ),
    },
    "from scratch, then": {"demon-pruning-shrink": NUMBERS_BY_WEIGHT, "plasticity-injection": "adds to them"},
}
"""By strategy, which plugins are refused, and words of the reason."""

AT_THE_START = {("GDumb", "shrink-perturb-interpolate"), ("from scratch, then", "shrink-perturb-interpolate")}
"""Whose weights are where the plugin would pull them."""

NOT_FIRST = {"hyper-hypo", "hyper-hypo-random", "plasticity-injection", "l2", "l2-init", "spectral-regularization"}
"""Which never write to the first layer themselves: they act by gradients, or behind it."""

TASKS = {"PackNet"}  # need task labels
UNREADY = {"iCaRL", "SCR"}  # cannot be evaluated before the first experience
