"""Change single hidden units, their weights and optimizer state together.

The modules beside mask connections, remove units physically, and let only chosen entries of parameters learn.
"""

from plasticity.surgery.single_units import (
    OUTGOING_SHARE,
    Index,
    columns_of,
    outgoing,
    reinitialise,
    silence,
    units_index,
)

__all__ = ["OUTGOING_SHARE", "Index", "columns_of", "outgoing", "reinitialise", "silence", "units_index"]
