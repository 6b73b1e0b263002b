"""Watch hidden units: running statistics of every unit, kept on the model's device without a host sync."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, layer, unwrap
from plasticity.tracing.preserve import Uncompiled
from plasticity.watching.calls import EVERY, Before, Calls, Look, Looker
from plasticity.watching.compiled import CompiledWatch, compiled_watch
from plasticity.watching.layer_inputs import FeatureRows, InputSums, input_of, unit_dim
from plasticity.watching.passes import Pass, callers
from plasticity.watching.unit_statistics import Sums, UnitStatistics


class Activity:
    """Statistics of hidden units; made by `watch`.

    Attributes:
        model: The network, unwrapped.
        units: The groups that are watched.
        every: Which forward passes are looked at: the first of so many, since the last `reset`.
        attached: Whether passes are watched, or the next one is.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Iterable[UnitGroup],
        *,
        inputs: bool | Collection[str] = False,
        features: int = 0,
        every: int = 1,
        compiled: bool = False,
    ) -> None:
        check_every(every)
        refuse_replicas(model)
        self.model = unwrap(model)
        self._asked = model if compiled and every == 1 and not inputs else None
        self.units = units if isinstance(units, UnitGroups) else UnitGroups(units)
        writers = {write.layer for group in self.units for write in group.writes}
        self._inputs = (writers if inputs else set()) if isinstance(inputs, bool) else writers & set(inputs)
        self._asked_for_inputs = inputs is not False
        self._rows = FeatureRows(features)
        self._features = features
        self.every = every
        self._calls: Calls | None = None
        self._compiled: CompiledWatch | None = None
        self._uncompiled = Uncompiled()
        self._once = self.attached = False
        self._pass = Pass(self._function_called)
        self._sums = {group.name: Sums(group, self._dim(group)) for group in self.units}
        self._by_function: dict[str, dict[int, Looker]] = {}
        self._by_output: list[tuple[str, int, Looker]] = []
        for group, sums in zip(self.units, self._sums.values(), strict=True):
            if group.site is not None and group.site.function:
                self._by_function.setdefault(group.site.module, {})[group.site.call] = self._look(sums)
            elif group.site is not None:
                self._by_output.append((group.site.module, group.site.call, self._look(sums)))
            elif group.at is not None:
                self._by_output.append((group.at, EVERY, self._look(sums)))
        self.reset()

    # --- results -----------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything seen so far."""
        for sums in self._sums.values():
            sums.clear()
        if self._compiled is not None:
            self._compiled.clear()
        self._passes = 0
        self._input_sums = {name: InputSums() for name in self._inputs}
        self._rows.clear()

    def statistics(self) -> dict[str, UnitStatistics]:
        """Return what was seen, by group name, on the model's device."""
        if self._compiled is not None:
            self._compiled.settle()
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return {name: sums.statistics(device) for name, sums in self._sums.items()}

    def input_means(self) -> dict[str, Tensor]:
        """Return the mean input of each writing layer, (input features or channels,), by layer name.

        Raises:
            UserError: If `inputs=True` was not asked for.
        """
        if not self._asked_for_inputs:
            raise UserError("input means are collected only by watch(..., inputs=True)")
        return {name: seen.total / seen.count for name, seen in self._input_sums.items() if seen.total is not None}

    def input_minima(self) -> dict[str, Tensor]:
        """Return the least input of each writing layer, 0-dimensional, by layer name.

        Raises:
            UserError: If `inputs=True` was not asked for.
        """
        if not self._asked_for_inputs:
            raise UserError("input minima are collected only by watch(..., inputs=True)")
        return {name: seen.least for name, seen in self._input_sums.items() if seen.least is not None}

    def features(self) -> Tensor | None:
        """Return the penultimate representation seen first, (at most `features` rows, width), or None if none was.

        It is the input of the layer that writes the output, averaged over the positions of a convolution; where an
        activation writes the output, that of the last group.
        """
        return self._rows.rows()

    # --- watching -------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Begin to watch."""
        if self.attached:
            raise UserError("this activity is already attached")
        self.attach_for_one_pass()
        self._once = False

    def attach_for_one_pass(self) -> None:
        """Watch the next forward pass alone; right for as long as the model's modules are the same objects."""
        if self._calls is None:
            self._calls = self._planned()
            self._plan_compiled()
        self._once = self.attached = True
        self._calls.wait()
        if self._compiled is not None:
            self._compiled.wait()  # in front of the calls, which see the passes that it leaves to them
        self._uncompiled.enter()

    def look_away(self) -> None:
        """Stop watching, until it begins again: the model's modules are taken to be the same objects then."""
        self.attached = False
        if self._compiled is not None:
            self._compiled.rest()
        if self._calls is not None:
            self._calls.rest()
        if self._by_function:
            self._pass.leave()
        self._uncompiled.leave()

    def detach(self) -> None:
        """Stop watching, and let go of the model's modules."""
        self.look_away()
        self._calls = None

    def _plan_compiled(self) -> None:
        """Watch the network within its own graphs, if that is asked for and it has any."""
        if self._compiled is not None:
            self._compiled.plan()
        elif self._asked is not None:
            rows = self._rows if self._features else None
            self._compiled = compiled_watch(self._asked, self.units, [*self._sums.values()], rows, self._left)

    def _planned(self) -> Calls:
        root = self.model
        modules = dict(root.named_modules())
        outputs = [name for name, *_ in self._by_output]
        missing = [name for name in (*self._by_function, *outputs) if name not in modules]
        if missing:
            raise UserError(f"the model has no module '{missing[0]}'; find its units again after it changes")
        for name in ("", *outputs):
            if any(isinstance(modules[part], torch.jit.ScriptModule) for part in _path(name)):
                what = f"the output of '{name}'" if name else "the model"
                raise UserError(f"{what} cannot be watched: TorchScript shows nothing of its calls")
        calls = Calls(root, self._entered, self._left)
        for name in callers(modules) if self._by_function else ():
            calls.around(name, self._pass.around(name))
        for name, call, looker in self._by_output:
            calls.output(name, call, looker)
        for name in self._inputs:
            calls.before(name, self._input_look(name))
        if self._features:
            for name in self.units.outputs:
                if name in modules:
                    calls.before(name, self._feature_look(modules[name]))
        return calls

    def _entered(self) -> bool:
        self._passes += 1
        looked_at = (self._passes - 1) % self.every == 0
        if looked_at and self._by_function:
            self._pass.enter()
        return looked_at

    def _left(self) -> None:
        if self._once:
            self.look_away()
        elif self._calls is not None:
            self._calls.end()
            self._pass.leave()

    def _function_called(self, module: str, call: int, result: Any) -> None:
        look = self._by_function.get(module, {}).get(call)
        if look is not None and isinstance(result, Tensor):
            look.add(result)

    def _look(self, sums: Sums) -> Looker:
        """Return who looks at the activations of a group."""
        if not self._features or self.units.outputs or sums.group is not self.units[-1]:
            return sums

        def look(activations: Tensor) -> None:
            """Keep rows, too: these units are the representation, as no layer that writes the output has an input."""
            sums.add(activations)
            self._rows.add(activations, sums.dim)

        return Look(look)

    def _input_look(self, name: str) -> Before:
        dim = unit_dim(layer(self.model, name))

        def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._input_sums[name].add(input_of(args, kwargs), dim)

        return look

    def _feature_look(self, module: nn.Module) -> Before:
        dim, rows = unit_dim(module), self._rows

        def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if rows.room > 0:
                rows.add(args[0] if args else kwargs["input"], dim)

        return look

    def _dim(self, group: UnitGroup) -> int | None:
        if group.site is not None:
            return group.site.dim
        return unit_dim(layer(self.model, group.writes[0].layer))


def refuse_replicas(model: nn.Module) -> None:
    """Refuse a network that runs on several devices at once, as other objects.

    Raises:
        UserError: If it is one.
    """
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise UserError("the replicas of DataParallel cannot be watched; use one device or DistributedDataParallel")


def check_every(every: int) -> None:
    """Refuse what cannot say how many passes there are from one that is looked at to the next.

    Raises:
        UserError: If it is no whole number of at least 1.
    """
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise UserError(f"every must be a whole number of at least 1, not {every!r}")


def _path(name: str) -> list[str]:
    """Name a module and all modules around it."""
    parts = name.split(".")
    return ["", *(".".join(parts[: count + 1]) for count in range(len(parts) if name else 0))]


@contextmanager
def watch(
    model: nn.Module,
    units: Iterable[UnitGroup],
    *,
    inputs: bool | Collection[str] = False,
    features: int = 0,
    every: int = 1,
    compiled: bool = False,
) -> Iterator[Activity]:
    """Collect statistics of hidden units over every forward pass of a model inside the block.

    Only forward passes of the whole model count, each activation once; what is recomputed for a backward pass does
    not. Nothing is copied to the host. Sums are float64, counts int64, also under autocast; only on a CPU without Numba
    or with more than four threads are many activations of one call added up in float32 first, which is exact to about
    one part in a million.

    A network made by `torch.compile` runs uncompiled inside the block. With `compiled=True` it runs in graphs that are
    compiled for this block in the same way, once for every size of mini-batch and the like, and that add up what is
    watched by themselves: right where there are many passes. Where that is not certain to see the same, as in networks
    that cannot be compiled as one graph, a warning says why, and they run uncompiled.

    With `every=k` the first of every k forward passes is looked at, and the others run as if nobody watched, but for a
    few microseconds: what is returned then equals what was to be seen in those passes alone, and `count` says how much
    that was.

    Args:
        model: The network.
        units: Groups from `find_units`, or made by hand.
        inputs: Also collect the mean input of every writing layer, see `Activity.input_means`, or of those named.
        features: Also keep up to this many rows of the penultimate representation, see `Activity.features`.
        every: Look at the first of so many forward passes; 1: at all.
        compiled: Watch within compiled graphs; it has no effect on other networks, nor with `inputs` or `every`.

    Yields:
        The statistics, which can be read inside the block and after it.

    Raises:
        UserError: If a group does not fit the model, or `every` is no whole number of at least 1.
    """
    activity = Activity(model, units, inputs=inputs, features=features, every=every, compiled=compiled)
    try:
        activity.attach()
        yield activity
    finally:
        activity.detach()
