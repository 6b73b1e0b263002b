"""Values that a user gives: each is what it should be, or refused in one line."""

from __future__ import annotations

from typing import Any

from plasticity.errors import UserError


def in_range(name: str, value: Any, low: float = 0.0, high: float = float("inf")) -> float:
    """Return a setting as a float.

    Raises:
        UserError: If it is not a number in [low, high].
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and value >= max(low, _TOO_LARGE) and high == float("inf"):
        raise UserError(f"{name} must be a number below 8e307, not {shown(value)}")
    if not number or not low <= value <= high:
        bound = f"in [{low:g}, {high:g}]" if high < float("inf") else f"of at least {low:g}"
        raise UserError(f"{name} must be a number {bound}, not {shown(value)}")
    return float(value)


def check_shares(rule: object, *names: str) -> None:
    """Refuse values outside [0, 1].

    Raises:
        UserError: If there is one.
    """
    for name in names:
        value = getattr(rule, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"{name} must lie in [0, 1], not {shown(value)}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number, too small a one, or one that no counter reaches.

    Raises:
        UserError: If it is so.
    """
    if not _whole(value) or value < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {shown(value)}")
    if value >= LARGEST:
        raise UserError(f"{name} must be below 2**63, not {shown(value)}")


def check_flag(name: str, value: Any) -> bool:
    """Return a setting that is True or False.

    Raises:
        UserError: If it is neither: "no" and 0 would mean yes and no to Python.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, not {shown(value)}")
    return value


def check_seed(value: Any) -> int:
    """Return the seed of a random generator.

    Raises:
        UserError: If it is no whole number from 0 to 2**63 - 1.
    """
    if not _whole(value) or not 0 <= value < LARGEST:
        raise UserError(f"seed must be a whole number from 0 to 2**63 - 1, not {shown(value)}")
    return int(value)


def shown(value: object) -> str:
    """Return a value as one line for a message, not a long one."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a number of about {value.bit_length() * 3 // 10} digits"  # Python refuses to print the longest
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}…"


LARGEST = 2**63
"""No whole number that counts something is as large."""
_TOO_LARGE = 2.0**1023
"""Where floats, and sums of a few of them, end."""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
