"""Asymmetric noise: it moves the weights of live units only, so that they may wander into death but never back.

Source: Dufort-Labbé et al. 2024, "Maxwell's Demon at Work: Efficient Pruning by Leveraging Saturation of Neurons",
arXiv 2403.07688, and its official code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plasticity.groups import UnitGroup, layer, unwrap
from plasticity.methods.latest_activity import MagnitudeActivity

Gate = Literal["units", "gradients", "none"]


class _Writer:
    """The rows of one layer or normaliser, and which unit of which group each of them writes."""

    def __init__(self, length: int, device: torch.device) -> None:
        self.length, self.device = length, device
        self.parts: list[tuple[str, Tensor]] = []
        self.same: str | None = None  # the group whose unit i is written by row i, if there is no other
        self.free = torch.ones(length, dtype=torch.bool, device=device)

    def add(self, group: str, rows: Tensor) -> None:
        """Note that unit i of a group is written by row rows[i], -1 for none."""
        plain = not self.parts and torch.equal(rows.cpu(), torch.arange(self.length))
        self.same = group if plain else None
        self.free[rows[rows >= 0].to(self.device)] = False
        self.parts.append((group, torch.where(rows < 0, self.length, rows).to(self.device)))

    def live(self, live: Mapping[str, Tensor]) -> Tensor:
        """Return the rows that write a live unit, or no unit at all, (rows,) bool."""
        if self.same is not None and self.same in live:
            return live[self.same]
        hits = torch.zeros(self.length + 1, dtype=torch.int64, device=self.device)
        for group, rows in self.parts:
            if group in live:
                hits.index_add_(0, rows, live[group].to(hits))
        return (hits[:-1] > 0) | self.free


class AsymmetricNoise:
    """Noise for the parameters of one model as it is now, to be kept for as long as it does not change.

    Args:
        model: The network.
        units: Its groups.
        gate: What keeps noise away from an entry: "units": its gradient is exactly 0, or it belongs to the incoming
            weights, bias or normaliser of silent units, whose gradient penalties keep from being 0; "gradients": its
            gradient is exactly 0; "none": nothing.
        spared: Parameters that get no noise.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Iterable[UnitGroup],
        gate: Gate = "units",
        spared: frozenset[Tensor] = frozenset(),
    ) -> None:
        self.gate = gate
        writers: dict[str, _Writer] = {}
        for group in units if gate == "units" else ():
            for write in group.writes:
                weight = layer(model, write.layer).weight
                assert isinstance(weight, Tensor)
                writers.setdefault(write.layer, _Writer(len(weight), weight.device)).add(group.name, write.rows)
                if write.norm is not None and write.norm_rows is not None:
                    scale = getattr(unwrap(model).get_submodule(write.norm), "weight", None)
                    if isinstance(scale, nn.Parameter) and scale.dim() == 1:
                        channels = writers.setdefault(write.norm, _Writer(len(scale), scale.device))
                        channels.add(group.name, write.norm_rows)
        self._writers = writers
        self._parameters: list[tuple[nn.Parameter, str | None]] = []
        for name, parameter in unwrap(model).named_parameters():
            if parameter in spared:
                continue
            owner, _, key = name.rpartition(".")
            written = owner in writers and key in ("weight", "bias") and len(parameter) == writers[owner].length
            self._parameters.append((parameter, owner if written else None))

    def add(self, live: Mapping[str, Tensor], std: float, generators: Mapping[torch.device, torch.Generator]) -> None:
        """Add normal noise to every entry that the gate lets through; to no parameter without a gradient.

        Args:
            live: (size,) bool by group name, which units fired in the latest training forward pass.
            std: Standard deviation of the noise.
            generators: Where the noise on each device is drawn from; PyTorch's own where there is none.
        """
        rows = {name: writer.live(live) for name, writer in self._writers.items()}
        with torch.no_grad():
            for parameter, owner in self._parameters:
                if parameter.grad is None or not parameter.is_floating_point():
                    continue
                device = parameter.device
                noise = torch.randn(
                    parameter.shape, dtype=parameter.dtype, device=device, generator=generators.get(device)
                )
                if self.gate != "none":  # 0 and 1 in the noise's own type, by which a CPU multiplies far faster
                    noise.mul_(torch.ne(parameter.grad, 0, out=torch.empty_like(noise)))
                if owner is not None:
                    noise.mul_(rows[owner].view(-1, *[1] * (parameter.dim() - 1)))
                parameter.add_(noise, alpha=std)


def live_units(activity: MagnitudeActivity) -> dict[str, Tensor]:
    """Return which units fired in the latest passes, (size,) bool by group name; all of a group that was not run."""
    live: dict[str, Tensor] = {}
    for group in activity.units:
        seen = activity.latest.get(group.name)
        if seen is not None:
            live[group.name] = seen.values != 0
        else:  # no sample has reached it
            device = next(activity.model.parameters()).device
            live[group.name] = torch.ones(group.size, dtype=torch.bool, device=device)
    return live


class NoiseGenerators:
    """Where noise is drawn from: a random generator for each device, made when it is first needed.

    Args:
        seed: Of each.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._states: dict[str, Tensor] = {}
        self._made: dict[torch.device, torch.Generator] = {}

    def of(self, model: nn.Module) -> dict[torch.device, torch.Generator]:
        """Return a generator for each device that holds parameters of a model."""
        if not self._made:
            for device in {parameter.device for parameter in model.parameters()}:
                if device.type == "meta":  # has no values to draw
                    continue
                generator = torch.Generator(device).manual_seed(self._seed)
                if str(device) in self._states:
                    generator.set_state(self._states[str(device)])
                self._made[device] = generator
        return self._made

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of each generator by its device."""
        return {**self._states, **{str(device): generator.get_state() for device, generator in self._made.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        self._states, self._made = {name: value.clone() for name, value in state.items()}, {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_seed": self._seed, "_states": self.state_dict(), "_made": {}}
