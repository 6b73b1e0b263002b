"""How much the activations of units vary: standard deviation and entropy, beside the usual statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plasticity.groups import UnitGroup
from plasticity.probe import Probe
from plasticity.watching.activity import Activity
from plasticity.watching.call_sums import sum_type
from plasticity.watching.calls import Look, Looker
from plasticity.watching.unit_statistics import Sums, UnitStatistics, plainly

BINS = 16
"""Of the histogram whose entropy is taken."""


@dataclass(frozen=True)
class SpreadStatistics(UnitStatistics):
    """What was seen of the units of one group, and how much it varied.

    Attributes:
        std: (size,) float64, standard deviation of the activation over all observations, in the unit of the activation;
            NaN where nothing was seen.
        entropy: (size,) float64, in nats, from 0 to ln 16: the entropy of a histogram of the activations within a
            window, averaged over windows. A window is what one forward pass shows of the unit; its histogram has 16
            equal bins from the least to the greatest activation in it. A unit that is constant in a window has entropy
            0 there. NaN where nothing, or something that is not finite, was seen.
    """

    std: Tensor
    entropy: Tensor


def spread_statistics(
    model: nn.Module, units: Iterable[UnitGroup], probe: Probe
) -> tuple[dict[str, SpreadStatistics], Tensor]:
    """Run a model in eval mode over a probe.

    Args:
        model: The network.
        units: Its groups.
        probe: The inputs; each of its batches is a window.

    Returns:
        What its units did, by group name, and its outputs, (samples, features).

    Source:
        Entropy within running windows: after Mitra and Franco 2017, arXiv 1708.09516; bins and windows are ours.
    """
    activity = _SpreadActivity(model, units)
    activity.attach()
    try:
        outputs = probe.outputs(model)
    finally:
        activity.detach()
    return activity.spread_statistics(), outputs


class _Spread:
    """Running sums of what varies, of the units of one group."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None  # squared distances from the mean, added up
        self.entropies: Tensor | None = None  # of windows, times their observations, added up

    def add(self, h: Tensor) -> None:
        """Add a window, (size, observations)."""
        number = h.shape[1]
        mean = h.mean(1)
        squares = (h - mean[:, None]).square().sum(1)
        entropies = number * histogram_entropy(h)
        if self.mean is None or self.squares is None or self.entropies is None:
            self.count, self.mean, self.squares, self.entropies = number, mean, squares, entropies
            return
        total = self.count + number
        apart = mean - self.mean
        self.squares += squares + apart.square() * (self.count * number / total)
        self.mean = self.mean + apart * (number / total)
        self.entropies += entropies
        self.count = total


def histogram_entropy(h: Tensor, bins: int = BINS) -> Tensor:
    """Return the entropy of the histogram of each row, in nats.

    Args:
        h: (rows, observations) values.
        bins: How many equal bins there are from the least to the greatest value of a row.

    Returns:
        (rows,) from 0 to ln(bins); 0 for a constant row, NaN for one with a value that is not finite.
    """
    least, greatest = h.amin(1, keepdim=True), h.amax(1, keepdim=True)
    width = greatest - least
    place = torch.where(width > 0, (h - least) / width, 0).mul(bins).nan_to_num(0).long().clamp(0, bins - 1)
    counts = torch.zeros(len(h), bins, dtype=h.dtype, device=h.device).scatter_add_(1, place, torch.ones_like(h))
    shares = counts / h.shape[1]
    return torch.where(width.squeeze(1).isfinite(), -torch.xlogy(shares, shares).sum(1), float("nan"))


class _SpreadActivity(Activity):
    """Statistics of hidden units that say how much they vary."""

    def reset(self) -> None:
        """Forget everything seen so far."""
        super().reset()
        self._spreads = {group.name: _Spread() for group in self.units}

    def spread_statistics(self) -> dict[str, SpreadStatistics]:
        """Return what was seen, by group name, on the model's device."""
        found = {}
        for name, stat in self.statistics().items():
            spread = self._spreads[name]
            std = entropy = torch.full_like(stat.mean, float("nan"))
            if spread.squares is not None and spread.entropies is not None:
                std, entropy = (spread.squares / spread.count).sqrt(), spread.entropies / spread.count
            found[name] = SpreadStatistics(stat.fired, stat.count, stat.mean, stat.mean_abs, std, entropy)
        return found

    def _look(self, sums: Sums) -> Looker:
        first = super()._look(sums)  # it checks the shape

        def look(activations: Tensor) -> None:
            first.add(activations)
            if activations.numel():
                with plainly():
                    self._spreads[sums.group.name].add(_observations(sums, activations.detach()))

        return Look(look)


def _observations(sums: Sums, h: Tensor) -> Tensor:
    """Return the activations of each unit, (size, observations)."""
    h = h.to(sum_type(h.device))
    if sums.dim is None:
        return h.reshape(1, -1)
    rows = h.movedim(sums.dim, 0).reshape(h.shape[sums.dim], -1)
    if sums.unit_of is not None:
        rows = rows[sums.unit_of.to(h.device).argsort(stable=True)]
    return rows.reshape(sums.group.size, -1)
