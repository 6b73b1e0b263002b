"""Find, watch and treat the hidden units of networks that learn from a stream of tasks."""

from plasticity import measures, surgery
from plasticity.errors import TraceError, UserError
from plasticity.exporting import export
from plasticity.groups import Consumer, UnitGroup, UnitGroups, Write
from plasticity.tracing.branches import register_branches
from plasticity.units import find_units
from plasticity.watching.activity import Activity, watch
from plasticity.watching.unit_gradients import GradientStatistics, UnitGradients, watch_gradients
from plasticity.watching.unit_statistics import UnitStatistics

__version__ = "0.1.0"

__all__ = [
    "Activity",
    "Consumer",
    "GradientStatistics",
    "TraceError",
    "UnitGradients",
    "UnitGroup",
    "UnitGroups",
    "UnitStatistics",
    "UserError",
    "Write",
    "export",
    "find_units",
    "measures",
    "register_branches",
    "surgery",
    "watch",
    "watch_gradients",
]
