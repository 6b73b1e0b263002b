"""Compiled loops that read every activation once; importing this takes the time that importing Numba takes.

Each adds to its last three arguments, of a unit or of a position of one: how many activations are above 0, their sum,
and that of their magnitudes, unless that array is empty. Activations are read where a tensor keeps them: nothing checks
that there are as many.
"""

from __future__ import annotations

from typing import Any

from numba import carray, njit, types
from numba.extending import intrinsic

# A vector's lanes are added up apart from each other, and put together at the end; NaN and infinities stay.
_LANES = {"reassoc", "contract"}


@intrinsic  # type: ignore[untyped-decorator]  # Numba does not annotate it
def _pointer(context: Any, address: Any, kind: Any) -> Any:
    """Take a whole number for the address of values of an array's data type."""
    pointer = types.CPointer(kind.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address, kind), generate


def _add_rows(address: Any, kind: Any, samples: int, positions: int, fired: Any, total: Any, magnitude: Any) -> None:
    """Add up rows, (samples, units x positions), element by element: what lies next to each other stays apart."""
    width = fired.size
    h = carray(_pointer(address, kind), (samples, width))
    if magnitude.size:
        for sample in range(samples):
            for unit in range(width):
                value = h[sample, unit]
                fired[unit] += value > 0
                total[unit] += value
                magnitude[unit] += abs(value)
    else:
        for sample in range(samples):
            for unit in range(width):
                value = h[sample, unit]
                fired[unit] += value > 0
                total[unit] += value


def _add_runs(address: Any, kind: Any, samples: int, positions: int, fired: Any, total: Any, magnitude: Any) -> None:
    """Add up the positions of each unit, (samples, units, positions), which lie next to each other."""
    units = fired.size
    h = carray(_pointer(address, kind), (samples, units, positions))
    for sample in range(samples):
        for unit in range(units):
            above, summed, magnitudes = 0, 0.0, 0.0
            if magnitude.size:
                for position in range(positions):
                    value = h[sample, unit, position]
                    above += value > 0
                    summed += value
                    magnitudes += abs(value)
                magnitude[unit] += magnitudes
            else:
                for position in range(positions):
                    value = h[sample, unit, position]
                    above += value > 0
                    summed += value
            fired[unit] += above
            total[unit] += summed


def _compiled(function: Any) -> Any:
    try:
        return njit(cache=True, fastmath=_LANES, error_model="numpy")(function)
    except RuntimeError:  # no place to keep what is compiled for the next process
        return njit(fastmath=_LANES, error_model="numpy")(function)


add_rows = _compiled(_add_rows)
add_runs = _compiled(_add_runs)
