"""Avalanche plugins: when a method runs; what it does stands in `plasticity.methods`."""

from plasticity.plugins.adaptive import AdaptivePlugin
from plasticity.plugins.base import TreatmentPlugin
from plasticity.plugins.continual_backprop import ContinualBackpropPlugin
from plasticity.plugins.dash import DASHPlugin
from plasticity.plugins.demon_pruning import DemonPruningPlugin
from plasticity.plugins.fire import FIREPlugin
from plasticity.plugins.gradient_dormancy import GradientDormancyPlugin
from plasticity.plugins.hare_tortoise import HareTortoisePlugin
from plasticity.plugins.hyper_hypo import HyperHypoPlugin
from plasticity.plugins.l2 import L2Plugin
from plasticity.plugins.l2_init import L2InitPlugin
from plasticity.plugins.normalize_and_project import NormalizeAndProjectPlugin
from plasticity.plugins.plasticity_injection import PlasticityInjectionPlugin
from plasticity.plugins.redo import ReDoPlugin
from plasticity.plugins.self_normalized_resets import SelfNormalizedResetsPlugin
from plasticity.plugins.shrink_perturb import ShrinkPerturbPlugin
from plasticity.plugins.spectral_regularization import SpectralRegularizationPlugin
from plasticity.plugins.synaptic_stripping import SynapticStrippingPlugin

__all__ = [
    "AdaptivePlugin",
    "ContinualBackpropPlugin",
    "DASHPlugin",
    "DemonPruningPlugin",
    "FIREPlugin",
    "GradientDormancyPlugin",
    "HareTortoisePlugin",
    "HyperHypoPlugin",
    "L2InitPlugin",
    "L2Plugin",
    "NormalizeAndProjectPlugin",
    "PlasticityInjectionPlugin",
    "ReDoPlugin",
    "SelfNormalizedResetsPlugin",
    "ShrinkPerturbPlugin",
    "SpectralRegularizationPlugin",
    "SynapticStrippingPlugin",
    "TreatmentPlugin",
]
