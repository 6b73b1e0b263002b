"""Where a network holds values that are not finite: NaN or infinite. Nothing can be judged by these."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.groups import UnitGroups, unwrap
from plasticity.measures import nonfinite_units
from plasticity.probe import Probe
from plasticity.watching.activity import Activity
from plasticity.watching.unit_statistics import UnitStatistics


class NonFiniteError(ArithmeticError):
    """What units would be judged by is not finite; the message says what."""


def nonfinite_weights(model: nn.Module) -> str | None:
    """Say which parameter or buffer of a network is not finite, in words; None: all are. Asks the device once.

    Args:
        model: The network.
    """
    own = unwrap(model)
    named = {name: each.detach() for name, each in (*own.named_parameters(), *own.named_buffers())}
    floating = {name: each for name, each in named.items() if each.is_floating_point() and each.numel()}
    if not floating:
        return None
    largest = torch._foreach_norm(list(floating.values()), float("inf"))  # NaN where there is one
    device = largest[0].device
    finite = torch.stack([each.isfinite().to(device) for each in largest]).tolist()
    found = [name for name, good in zip(floating, finite, strict=True) if not good]
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"'{found[0]}'{others} of its weights are not finite" if found else None


def nonfinite_activity(stats: Mapping[str, UnitStatistics], outputs: Tensor | None = None) -> str | None:
    """Say which group has units that were NaN or infinite, and how many; None: none has. Asks the device once.

    Args:
        stats: Statistics by group name.
        outputs: Outputs of the same passes; NaN and positive infinity count. A head may hide classes by negative
            infinity.
    """
    seen = {name: stat for name, stat in stats.items() if stat.count}
    marks = [nonfinite_units(stat).sum() for stat in seen.values()]
    if outputs is not None:
        marks.append((outputs.isnan() | outputs.isposinf()).sum().to(marks[0].device if marks else outputs.device))
    if not marks:
        return None
    counts = dict(zip([*seen, ""] if outputs is not None else seen, torch.stack(marks).tolist(), strict=True))
    wrong = counts.pop("", 0)
    groups = {name: count for name, count in counts.items() if count}
    if groups:
        name, count = next(iter(groups.items()))
        others = f", and others of {len(groups) - 1} more groups" if len(groups) > 1 else ""
        return f"{count} of {len(seen[name].mean_abs)} units of '{name}' are NaN or infinite{others}"
    return "its outputs are NaN or infinite" if wrong else None


class CheckedProbe(Probe):
    """A probe on which a network has to be finite when it is first looked at, before anything is changed.

    Raises:
        NonFiniteError: From that look, if it is not.
    """

    _checked = False

    def outputs(self, model: nn.Module) -> Tensor:
        """Run the model in eval mode over the probe and return its outputs, (samples, features)."""
        found = super().outputs(model)
        self._check({}, found)
        return found

    def watch(
        self, model: nn.Module, units: UnitGroups, *, inputs: bool | Collection[str] = False, features: int = 0
    ) -> tuple[Activity, Tensor]:
        """Run the model in eval mode over the probe and return what its units did, and its outputs."""
        activity, found = super().watch(model, units, inputs=inputs, features=features)
        if not self._checked:
            self._check(activity.statistics(), found)
        return activity, found

    def _check(self, stats: Mapping[str, UnitStatistics], outputs: Tensor) -> None:
        if self._checked:
            return
        reason = nonfinite_activity(stats, outputs)
        if reason is not None:
            raise NonFiniteError(f"{reason} on {self.samples} training samples")
        self._checked = True


def all_finite(tensors: Collection[Tensor]) -> Tensor:
    """Return whether all entries of some tensors are finite, 0-dim bool on the device of the first.

    Args:
        tensors: At least one.
    """
    marks: list[Any] = [tensor.isfinite().all() for tensor in tensors]
    return torch.stack([mark.to(marks[0].device) for mark in marks]).all()
