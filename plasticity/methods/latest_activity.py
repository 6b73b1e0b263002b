"""What units did in the latest mini-batch, for methods that look at each: a few cheap operations a group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.distributed import Group, add_up
from plasticity.errors import UserError
from plasticity.groups import UnitGroups
from plasticity.methods.recycling import private_groups, skipped_groups
from plasticity.watching.activity import Activity
from plasticity.watching.call_sums import sum_type
from plasticity.watching.calls import Look, Looker
from plasticity.watching.unit_statistics import Sums


@dataclass(frozen=True)
class BatchSums:
    """Sums over the samples and positions of a mini-batch.

    Attributes:
        values: (size,).
        count: Samples x positions.
    """

    values: Tensor
    count: int


def sums_of_all(
    kept: Sequence[Mapping[str, BatchSums]], units: UnitGroups, samples: int, group: Group
) -> tuple[list[dict[str, BatchSums]], int]:
    """Put sums of all processes together, in one exchange.

    Args:
        kept: Sums by group name, one or several of each.
        units: The groups, the same in every process; some may lack sums.
        samples: Size of this process's part of the mini-batch.
        group: The processes.

    Returns:
        As `kept`, with the mean over all processes as the values and 1 as the count; and the size of all parts.

    Raises:
        UserError: If a process is lost.
    """
    device = next((seen.values.device for sums in kept for seen in sums.values()), torch.device("cpu"))
    asked = [(sums.get(each.name), each) for sums in kept for each in units]
    values = [torch.zeros(each.size, device=device) if seen is None else seen.values for seen, each in asked]
    counts = torch.tensor([*(0 if seen is None else seen.count for seen, _ in asked), samples], device=device)
    (total,) = add_up([torch.cat([*values, counts]).to(sum_type(device))], group)
    *parts, numbers = total.split([*map(len, values), len(counts)])
    *seen_in_all, samples = (int(number) for number in numbers.tolist())
    found: list[dict[str, BatchSums]] = [{} for _ in kept]
    for place, ((_, each), part, count) in enumerate(zip(asked, parts, seen_in_all, strict=True)):
        if count:
            found[place // len(units)][each.name] = BatchSums((part / count).to(values[place].dtype), 1)
    return found, samples


class LatestActivity(Activity):
    """Watches the private groups of a model; `latest` is of the passes since the last `clear`.

    Args:
        model: The network.
        units: Its groups.
        activations: Names of the activations that a method can judge; None: all.
        private: With False, watch all groups.

    Attributes:
        latest: By group name.
        skipped: The groups that are not watched, and why.

    Raises:
        UserError: If no group is left.
    """

    def __init__(
        self,
        model: nn.Module,
        units: UnitGroups,
        *,
        activations: Collection[str] | None = None,
        private: bool = True,
    ) -> None:
        super().__init__(model, private_groups(units, activations) if private else units)
        self.skipped = skipped_groups(units, activations) if private else {}
        self.latest: dict[str, BatchSums] = {}

    def clear(self) -> None:
        """Forget the latest passes."""
        self.latest = {}

    def put_together(self, samples: int, group: Group) -> int:
        """Put the latest passes of all processes together; arguments and errors as of `sums_of_all`.

        Returns:
            The size of the whole mini-batch.
        """
        if group is not None:
            (self.latest,), samples = sums_of_all([self.latest], self.units, samples, group)
        return samples

    def _look(self, sums: Sums) -> Looker:
        return Look(partial(self._seen, sums))

    def _seen(self, sums: Sums, activations: Tensor) -> None:
        """Note the activations of a call."""
        raise NotImplementedError

    def _sum(self, sums: Sums, values: Tensor, dtype: torch.dtype, to: dict[str, BatchSums]) -> None:
        name = sums.group.name
        total, count = sums.per_unit(values, dtype), values.numel() // sums.group.size
        before = to.get(name)
        to[name] = BatchSums(total, count) if before is None else BatchSums(before.values + total, before.count + count)


class MagnitudeActivity(LatestActivity):
    """Sums up |h|, float32.

    Args:
        model: The network.
        units: Its groups.
        activations: Names of the activations that a method can judge; None: all.
        private: With False, watch all groups.
        means: Also sum up h.

    Attributes:
        signed: As `latest`, for h.
    """

    def __init__(
        self,
        model: nn.Module,
        units: UnitGroups,
        *,
        activations: Collection[str] | None = None,
        private: bool = True,
        means: bool = False,
    ) -> None:
        super().__init__(model, units, activations=activations, private=private)
        self.means = means
        self.signed: dict[str, BatchSums] = {}

    def clear(self) -> None:
        """Forget the latest passes."""
        super().clear()
        self.signed = {}

    def put_together(self, samples: int, group: Group) -> int:
        """Put the latest passes of all processes together."""
        if group is None or not self.means:
            return super().put_together(samples, group)
        (self.latest, self.signed), samples = sums_of_all([self.latest, self.signed], self.units, samples, group)
        return samples

    def _seen(self, sums: Sums, activations: Tensor) -> None:
        with _plainly():
            h = activations.detach()
            self._sum(sums, h.abs() if sums.signed else h, torch.float32, self.latest)
            if self.means:
                self._sum(sums, h, torch.float32, self.signed)


class GradientActivity(LatestActivity):
    """Sums up |dL/dz| of the backward passes of what it watched, float32; z is what a unit's activation is applied to.

    Args:
        model: The network.
        units: Its groups.
        before: With False, sum up |dL/dh|, behind the activation.
    """

    def __init__(self, model: nn.Module, units: UnitGroups, *, before: bool = True) -> None:
        super().__init__(model, units)
        self.before = before

    def _seen(self, sums: Sums, activations: Tensor) -> None:
        if not activations.requires_grad:
            return
        if not self.before:
            activations.register_hook(partial(self._flows, sums))
        elif activations.grad_fn is not None:
            activations.grad_fn.register_hook(partial(self._passed, sums, activations.shape))

    def _flows(self, sums: Sums, gradient: Tensor) -> None:
        with _plainly():
            self._sum(sums, gradient.detach().abs(), torch.float32, self.latest)

    def _passed(self, sums: Sums, shape: torch.Size, inputs: Any, outputs: Any) -> None:
        if inputs[0] is None:  # all below is frozen
            return
        if inputs[0].shape != shape:
            raise UserError(
                f"group '{sums.group.name}': where its activations are seen is no activation function, so the gradient "
                'before it is unknown; ask for the one behind it, with gradient="after"'
            )
        self._flows(sums, inputs[0])


def _plainly() -> AbstractContextManager[None]:
    """Compute so that the result can be added to in any mode; on what is detached no gradients are tracked anyhow."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
