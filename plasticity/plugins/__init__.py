"""Avalanche plugins: when a method runs; what it does stands in `plasticity.methods`."""

from plasticity.plugins.base import TreatmentPlugin
from plasticity.plugins.hyper_hypo import HyperHypoPlugin
from plasticity.plugins.redo import ReDoPlugin
from plasticity.plugins.synaptic_stripping import SynapticStrippingPlugin

__all__ = [
    "HyperHypoPlugin",
    "ReDoPlugin",
    "SynapticStrippingPlugin",
    "TreatmentPlugin",
]
