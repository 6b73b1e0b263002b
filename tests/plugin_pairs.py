"""What tests of two methods in one strategy share: both orders, and who moves or follows weights, by name."""

from functools import partial

import pytest
from weight_methods import PLUGINS

from plasticity.plugins import PlasticityInjectionPlugin, SynapticStrippingPlugin

BOTH_ORDERS = pytest.mark.parametrize("first", [True, False])

MOVERS = {
    **PLUGINS,
    "normalize-and-project": partial(PLUGINS["normalize-and-project"], normaliser_decay=0.1),
    "synaptic-stripping": partial(SynapticStrippingPlugin, "whitaker2023"),
    "plasticity-injection": PlasticityInjectionPlugin,
}
"""Methods that write to weights, and know no single units."""


def ordered(one, other, first):
    """Return two plugins in either order."""
    return [one, other] if first else [other, one]
