"""Find, watch and treat the hidden units of networks that learn from a stream of tasks."""

from plasticity import measures, surgery
from plasticity.activity import Activity, UnitStatistics, watch
from plasticity.errors import TraceError, UserError
from plasticity.groups import Consumer, UnitGroup, UnitGroups, Write
from plasticity.tracing.branches import register_branches
from plasticity.units import find_units

__version__ = "0.1.0"

__all__ = [
    "Activity",
    "Consumer",
    "TraceError",
    "UnitGroup",
    "UnitGroups",
    "UnitStatistics",
    "UserError",
    "Write",
    "find_units",
    "measures",
    "register_branches",
    "surgery",
    "watch",
]
