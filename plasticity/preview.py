"""What a treatment would do, found out on a copy of the network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import UnitGroups, unwrap
from plasticity.methods.treatment import Treatment

Kind = TypeVar("Kind", bound=Optimizer | None)
SHOWN = 12
"""How many numbers of units a line shows, at most."""


@dataclass(frozen=True)
class Preview:
    """What a plugin would do to a network; `print` shows it as text.

    Attributes:
        method: Name of the method.
        report: What a treatment would report now; None for a method that acts at every step.
        units: How many units there are, by name of those groups that may be treated.
        left_alone: Why other groups may not be, in words, by name.
        parameters: By qualified name of each parameter that would be written to, how many of its entries would change
            (of a method that acts at every step, how many there are), and how many it has.
    """

    method: str
    report: Treatment | None = None
    units: Mapping[str, int] = field(default_factory=dict)
    left_alone: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def treated(self) -> int:
        """How many units would be treated."""
        return 0 if self.report is None else sum(map(len, self.report.units.values()))

    def __str__(self) -> str:
        lines = [self._headline()]
        if self.units or self.left_alone:
            lines += _aligned([("group", "units", "treated", "why", "which"), *self._rows()])
        if self.parameters:
            rows = [(name, f"{count} of {total}") for name, (count, total) in self.parameters.items()]
            lines += ["", *_aligned([("parameter", "entries that change"), *rows])]
        if self.report is not None:
            counts = {**self.report.counts, "output_shift": self.report.output_shift}
            lines += ["", ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in counts.items())]
        return "\n".join(lines)

    def _headline(self) -> str:
        total = sum(self.units.values())
        if self.report is None:
            judged = f" judges {total} units after every update" if self.units else " acts at every step"
            return f"{self.method}{judged}; nothing is treated at once"
        on = f"judged on {self.report.samples} training samples"
        if self.units:
            return f"{self.method} would treat {self.treated} of {total} units, {on}"
        return f"{self.method} would write to {len(self.parameters)} parameters; the shift of outputs is {on}"

    def _rows(self) -> list[tuple[str, ...]]:
        reasons = {} if self.report is None else self.report.reasons
        rows: list[tuple[str, ...]] = []
        for name, size in self.units.items():
            found = [(why, groups[name]) for why, groups in reasons.items() if groups.get(name)]
            told = {number for _, numbers in found for number in numbers}
            rest = [] if self.report is None else sorted(set(self.report.units.get(name, ())) - told)
            found += [("treated along", rest)] if rest else []
            lines = [(str(len(numbers)), why, _listed(numbers)) for why, numbers in found] or [("0", "", "")]
            rows += [(name if not i else "", str(size) if not i else "", *line) for i, line in enumerate(lines)]
        rows += [(name, "", "-", f"left alone: {why}", "") for name, why in self.left_alone.items()]
        return rows


def twins(model: nn.Module, optimizer: Kind) -> tuple[nn.Module, Kind]:
    """Copy a network and its optimizer, to try something on the copies.

    Raises:
        UserError: If the network cannot be copied.
    """
    try:
        network, copied = copy.deepcopy((unwrap(model), optimizer))
    except (RuntimeError, TypeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"what would be treated is tried on a copy, and {type(unwrap(model)).__name__} cannot be copied: {why}"
        ) from error
    return network, copied


def changed_parameters(model: nn.Module, twin: nn.Module) -> dict[str, tuple[int, int]]:
    """Return how many entries of each parameter differ between a network and its copy, and how many there are.

    Args:
        model: The network.
        twin: Its copy, after something was done to it; it may have other shapes then.

    Returns:
        By qualified name; parameters without a difference are left out. Of one that has another shape now, the entries
        that are gone count.
    """
    own, others = dict(unwrap(model).named_parameters()), dict(unwrap(twin).named_parameters())
    found: dict[str, tuple[int, int]] = {}
    for name, parameter in own.items():
        other = others.get(name)
        if other is None:
            found[name] = (parameter.numel(), parameter.numel())
        elif other.shape != parameter.shape:
            found[name] = (abs(parameter.numel() - other.numel()), parameter.numel())
        else:
            same = (parameter == other) | (parameter.isnan() & other.isnan())
            count = int((~same).sum())
            if count:
                found[name] = (count, parameter.numel())
    return found


def keep_in_step(twin: nn.Module, model: nn.Module) -> None:
    """Give a copy the present values of the network, without a wait for the device."""
    with torch.no_grad():
        pairs = zip(
            [*twin.parameters(), *twin.buffers()],
            [*unwrap(model).parameters(), *unwrap(model).buffers()],
            strict=True,
        )
        for mine, now in pairs:
            mine.copy_(now)


def sizes(units: UnitGroups) -> dict[str, int]:
    """Return how many units each group has, by name."""
    return {group.name: group.size for group in units}


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _listed(numbers: Sequence[int]) -> str:
    shown = " ".join(map(str, numbers[:SHOWN]))
    return f"{shown} …" if len(numbers) > SHOWN else shown


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
