"""Which units still learn, read from gradients that are there already: no hook, no look at any activation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, Write, layer, unwrap
from plasticity.watching.call_sums import sum_type


@dataclass(frozen=True)
class GradientStatistics:
    """What was seen of the gradients of the units of one group, by looking once before each update.

    The gradient of a unit is that of the parameter that shifts it before its activation: dL/dz, added up over samples
    and positions.

    Attributes:
        mean_abs: (size,) float64, mean magnitude of the gradient over the looks; 0 only where it was exactly 0 at every
            look. NaN where nothing was seen.
        count: How many looks found a gradient.
    """

    mean_abs: Tensor
    count: int

    def together(self, later: GradientStatistics) -> GradientStatistics:
        """Put two stretches together; of a group that changed its size, only the later one."""
        if later.count == 0:
            return self
        if self.count == 0 or self.mean_abs.shape != later.mean_abs.shape:
            return later
        count = self.count + later.count
        return GradientStatistics((self.mean_abs * self.count + later.mean_abs * later.count) / count, count)


class _Source(NamedTuple):
    """The parameter that shifts some units of a group.

    Attributes:
        module: Qualified name.
        parameter: "bias" or "weight".
        units: (n,) numbers of units.
        rows: (n,) entries of the parameter.
    """

    module: str
    parameter: str
    units: Tensor
    rows: Tensor


class UnitGradients:
    """Sums of the gradients of hidden units; `watch_gradients` makes one that looks by itself.

    A unit's gradient is read from the bias of the normaliser between the layer that writes it and its activation, from
    that normaliser's weight if it has no bias, and without a normaliser from the layer's own bias. Where several layers
    are added up, the first that has such a parameter to train will do. A parameter that shifts units of several groups
    tells of all of them together.

    Args:
        model: The network.
        units: Groups from `find_units`, or made by hand.

    Attributes:
        model: The network, unwrapped.
        units: The groups.
        unreadable: By name of a group whose gradients cannot be read: why not.

    Raises:
        UserError: If there are units, and of none the gradients can be read.
    """

    def __init__(self, model: nn.Module, units: Iterable[UnitGroup]) -> None:
        self.model = unwrap(model)
        self.units = units if isinstance(units, UnitGroups) else UnitGroups(units)
        self.unreadable: dict[str, str] = {}
        self._sources: dict[str, list[_Source]] = {}
        for group in self.units:
            found = _sources(self.model, group)
            if isinstance(found, str):
                self.unreadable[group.name] = found
            else:
                self._sources[group.name] = found
        if self.unreadable and not self._sources:
            name, reason = next(iter(self.unreadable.items()))
            raise UserError(
                f"the gradients of no units can be read (group '{name}': {reason}); watch their activations instead"
            )
        places = {(each.module, each.parameter) for sources in self._sources.values() for each in sources}
        self._owners = {place: self.model.get_submodule(place[0]) for place in sorted(places)}
        self.reset()

    def reset(self) -> None:
        """Forget everything seen so far."""
        self._totals: dict[tuple[str, str], Tensor] = {}
        self._counts = dict.fromkeys(self._owners, 0)

    @torch.no_grad()
    def look(self) -> None:
        """Add the gradients as they are now; a parameter that holds none is passed over.

        To be called once before each update, after all that changes gradients. Nothing is asked of the device.
        """
        into, new = [], []
        for place, owner in self._owners.items():
            parameter = owner._parameters.get(place[1])
            gradient = None if parameter is None else parameter.grad
            if gradient is None:
                continue
            total = self._totals.get(place)
            if total is None:
                wide = torch.promote_types(gradient.dtype, torch.float32)
                total = self._totals[place] = torch.zeros_like(gradient, dtype=wide)
            into.append(total)
            new.append(gradient)
            self._counts[place] += 1
        if new:
            torch._foreach_add_(into, list(torch._foreach_abs(new)))

    def statistics(self) -> dict[str, GradientStatistics]:
        """Return what was seen, by name of each group whose gradients can be read, on the model's device."""
        return {group.name: self._of(group) for group in self.units if group.name in self._sources}

    def _of(self, group: UnitGroup) -> GradientStatistics:
        sources = self._sources[group.name]
        count = min(self._counts[each.module, each.parameter] for each in sources)
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        means = torch.full((group.size,), float("nan"), dtype=sum_type(device), device=device)
        if count == 0:
            return GradientStatistics(means, 0)
        for each in sources:
            place = each.module, each.parameter
            total = self._totals[place].to(means)  # before the division, in which small numbers could become 0
            rows, units = each.rows.to(device, non_blocking=True), each.units.to(device, non_blocking=True)
            means.index_copy_(0, units, total.index_select(0, rows) / self._counts[place])
        return GradientStatistics(means, count)


@contextmanager
def watch_gradients(model: nn.Module, units: Iterable[UnitGroup], optimizer: Optimizer) -> Iterator[UnitGradients]:
    """Look at the gradients of hidden units before each step of an optimizer inside the block.

    This takes two operations on as many numbers as there are units, where `watch` reads every activation; nothing is
    copied to the host. `measures.not_learning_units` marks the units whose gradient was exactly 0 all the time.

    A unit that was exactly 0 on all samples of all steps has no gradient, if its activation is flat at 0 as ReLU's is:
    dead units are not learning. Not learning says more, and other things:

    - a unit that fires, but whose readers have zero weights or are dead themselves, or that is saturated, is not
      learning either;
    - a penalty or weight decay in the loss that takes in the parameter gives dead units a gradient, too, and hides
      them, and so does what other methods add to gradients; an optimizer's weight decay comes later and does no harm;
    - an activation with a slope everywhere (leaky ReLU, GELU, tanh) has no units of zero gradient, but for saturation;
    - a parameter without a gradient (`None`: frozen, or not used since `zero_grad`) is not looked at; a layer that is
      not used and whose gradients `zero_grad(set_to_none=False)` fills with zeros looks as if it did not learn.

    Gradients that are scaled, or added up over several backward passes before a step, are zero as others are.

    Args:
        model: The network.
        units: Groups from `find_units`, or made by hand.
        optimizer: Of the model's parameters.

    Yields:
        What sums up the gradients.

    Raises:
        UserError: If there are units, and of none the gradients can be read.
    """
    gradients = UnitGradients(model, units)
    handle = optimizer.register_step_pre_hook(lambda *args: gradients.look())
    try:
        yield gradients
    finally:
        handle.remove()


def _sources(model: nn.Module, group: UnitGroup) -> list[_Source] | str:
    """Return where the gradients of all units of a group can be read, or why they cannot."""
    found: list[_Source] = []
    missing = torch.ones(group.size, dtype=torch.bool)
    reason = "no layer writes all of its units"
    for write in group.writes:
        place = _place(model, write)
        if isinstance(place, str):
            reason = place
            continue
        name, parameter, rows = place
        here = missing & (rows >= 0)
        if bool(here.any()):
            units = here.nonzero().squeeze(1)
            found.append(_Source(name, parameter, units, rows[units]))
            missing &= ~here
    return reason if bool(missing.any()) else found


def _place(model: nn.Module, write: Write) -> tuple[str, str, Tensor] | str:
    """Return module, name and entries of the parameter that shifts what a layer writes, or why there is none."""
    module: nn.Module
    candidates: tuple[str, ...] = ("bias",)
    if write.norm is None or write.norm_rows is None:
        name, module, rows = write.layer, layer(model, write.layer), write.rows
    else:
        try:
            module = model.get_submodule(write.norm)
        except AttributeError:
            raise UserError(f"the model has no module '{write.norm}'; find its units again after it changes") from None
        name, rows, candidates = write.norm, write.norm_rows, ("bias", "weight")
    reason = f"`{name}` has no {' and no '.join(candidates)}"
    for candidate in candidates:
        parameter = module._parameters.get(candidate)
        if parameter is None or is_lazy(parameter) or parameter.shape != (parameter.numel(),):
            continue
        if not parameter.requires_grad:
            reason = f"the {candidate} of `{name}` is frozen"
        elif int(rows.max()) < len(parameter):
            return name, candidate, rows
    return reason
