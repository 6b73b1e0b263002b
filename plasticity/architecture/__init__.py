"""Networks that lose less plasticity: the same network with other activations, normalisation or a new head."""

from plasticity.architecture.activations import with_activation
from plasticity.architecture.crelu import CReLU, register_crelu, with_crelu
from plasticity.architecture.injected import Injection
from plasticity.architecture.injection import inject_plasticity
from plasticity.architecture.normalisation import with_layer_norm
from plasticity.architecture.rewriting import Change, changes

__all__ = [
    "CReLU",
    "Change",
    "Injection",
    "changes",
    "inject_plasticity",
    "register_crelu",
    "with_activation",
    "with_crelu",
    "with_layer_norm",
]
