"""Watch hidden units: running statistics of every unit, kept on the model's device without a host sync."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, layer, unwrap
from plasticity.tracing.hooks import HookSet, WatchingHook, watched
from plasticity.tracing.passes import Pass, callers
from plasticity.tracing.preserve import Uncompiled
from plasticity.watching.layer_inputs import FeatureRows, InputSums, input_of, unit_dim
from plasticity.watching.unit_statistics import Sums, UnitStatistics

__all__ = ["Activity", "UnitStatistics", "watch"]


class Activity:
    """Statistics of hidden units; made by `watch`.

    Attributes:
        model: The network, unwrapped.
        units: The groups that are watched.
        every: Which forward passes are looked at: the first of so many, since the last `reset`.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Iterable[UnitGroup],
        *,
        inputs: bool | Collection[str] = False,
        features: int = 0,
        every: int = 1,
    ) -> None:
        check_every(every)
        refuse_replicas(model)
        self.model = unwrap(model)
        self.units = units if isinstance(units, UnitGroups) else UnitGroups(units)
        writers = {write.layer for group in self.units for write in group.writes}
        self._inputs = (writers if inputs else set()) if isinstance(inputs, bool) else writers & set(inputs)
        self._asked_for_inputs = inputs is not False
        self._features = features
        self.every = every
        self._hooks: HookSet | None = None
        self._uncompiled = Uncompiled()
        self._once = self._away = False
        self._pass = Pass(self._function_called)
        self._by_function: dict[str, dict[int, Sums]] = {}
        self._by_output: dict[str, dict[int, list[Sums]]] = {}
        self._sums = {group.name: Sums(group, self._dim(group)) for group in self.units}
        self.reset()

    # --- results -----------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything seen so far."""
        for sums in self._sums.values():
            sums.clear()
        self._passes = 0
        self._input_sums = {name: InputSums() for name in self._inputs}
        self._rows = FeatureRows(self._features)
        # Whose units are the representation, where no layer that writes the output has an input to be kept:
        last = bool(self._features and self.units and not self.units.outputs)
        self._last = self._sums[self.units[-1].name] if last else None
        self._by_function.clear()
        self._by_output.clear()
        for group, sums in zip(self.units, self._sums.values(), strict=True):
            if group.site is not None and group.site.function:
                self._by_function.setdefault(group.site.module, {})[group.site.call] = sums
            elif group.site is not None:
                self._by_output.setdefault(group.site.module, {}).setdefault(group.site.call, []).append(sums)
            elif group.at is not None:
                self._by_output.setdefault(group.at, {}).setdefault(-1, []).append(sums)

    def statistics(self) -> dict[str, UnitStatistics]:
        """Return what was seen, by group name, on the model's device."""
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

    # --- hooks -------------------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether there are hooks on the model."""
        return self._hooks is not None

    def attach(self) -> None:
        """Begin to watch: hooks are put on the model."""
        if self._hooks is not None:
            raise UserError("this activity is already attached")
        self._put_hooks()
        self._uncompiled.enter()

    def attach_for_one_pass(self) -> None:
        """Watch the next forward pass alone.

        The hooks stay on the model, and look away until this is called again: that is cheaper than to take them off,
        and right for as long as the model's modules are the same objects.
        """
        if self._hooks is None:
            self._put_hooks()
        self._uncompiled.enter()
        self._once, self._away = True, False

    def look_away(self) -> None:
        """Let the passes that follow be as if nobody watched, until `attach_for_one_pass`."""
        if self._once and not self._away:
            self._away = True
            self._uncompiled.leave()
            self._leave_forward()

    def detach(self) -> None:
        """Stop watching: every hook is taken off again."""
        if self._hooks is not None:
            hooks, self._hooks = self._hooks, None
            hooks.detach()
            self._uncompiled.leave()
            self._leave_forward()
            self._away = self._once = False

    def _put_hooks(self) -> None:
        self._hooks = self._planned()
        self._hooks.attach()

    def _planned(self) -> HookSet:
        root = self.model
        modules = dict(root.named_modules())
        missing = [name for name in (*self._by_function, *self._by_output) if name not in modules]
        if missing:
            raise UserError(f"the model has no module '{missing[0]}'; find its units again after it changes")
        for name in ("", *self._by_output):
            if any(isinstance(modules[part], torch.jit.ScriptModule) for part in _path(name)):
                what = f"the output of '{name}'" if name else "the model"
                raise UserError(f"{what} cannot be watched: TorchScript has no hooks")
        hooks = HookSet()
        hooks.before(root, self._enter_forward)
        for name in callers(modules) if self._by_function else ():
            hooks.before(modules[name], self._pass.entering(name))
            hooks.after(modules[name], self._pass.leaving(name), always_call=True)
        for name in self._by_output:
            hooks.after(modules[name], _OutputHook(self, name))
        for name in self._inputs:
            hooks.before(layer(root, name), self._input_hook(name))
        if self._features:
            for name in self.units.outputs:
                if name in modules:
                    hooks.before(modules[name], self._feature_hook)
        hooks.after(root, self._exit_forward, always_call=True)
        return hooks

    def _enter_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._away:
            return
        self._leave_forward()
        self._passes += 1
        if (self._passes - 1) % self.every:
            return
        self._pass.enter(functions=bool(self._by_function))

    def _exit_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._leave_forward()
        if self._once:
            self.look_away()

    def _leave_forward(self) -> None:
        self._pass.leave()

    def _function_called(self, module: str, call: int, result: Any) -> None:
        sums = self._by_function.get(module, {}).get(call)
        if sums is not None and isinstance(result, Tensor):
            self._seen(sums, result)

    def _seen(self, sums: Sums, activations: Tensor) -> None:
        sums.add(activations)
        if sums is self._last:
            self._rows.add(activations, sums.dim)

    def _input_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._pass.modules:
                self._input_sums[name].add(input_of(args, kwargs), unit_dim(module))

        return hook

    def _feature_hook(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._pass.modules and self._rows.room > 0:
            self._rows.add(input_of(args, kwargs), unit_dim(module))

    def _dim(self, group: UnitGroup) -> int | None:
        if group.site is not None:
            return group.site.dim
        return unit_dim(layer(self.model, group.writes[0].layer))


class _OutputHook(WatchingHook):
    """Hands what a module returns on to the sums of the groups that are seen there.

    It stands on its own, without a function that it calls: it is called for every activation of every pass.
    """

    def __init__(self, activity: Activity, name: str) -> None:
        super().__init__(self)
        self._activity, self._name, self._key = activity, name, f"output of {name}"

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Look, unless the module was called from outside the model's own forward, or nobody is to."""
        activity = self._activity
        if not activity._pass.modules or not watched():
            return
        by_call = activity._by_output[self._name]
        seen = by_call.get(activity._pass.count(self._key), [])
        for sums in [*seen, *by_call[-1]] if -1 in by_call else seen:
            if not isinstance(output, Tensor):
                kind = type(output).__name__
                raise UserError(f"group '{sums.group.name}': '{self._name}' returns a {kind}, no tensor")
            activity._seen(sums, output)


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
) -> Iterator[Activity]:
    """Collect statistics of hidden units over every forward pass of a model inside the block.

    Only forward passes of the whole model count, each activation once; what is recomputed for a backward pass does
    not. Nothing is copied to the host. Sums are float64, counts int64, also under autocast; a CPU adds up the float32
    activations of one call in float32 first, which is exact to about one part in a million. A compiled model runs
    uncompiled inside the block.

    With `every=k` the first of every k forward passes is looked at, and the others run as if nobody watched, but for a
    few microseconds: what is returned then equals what was to be seen in those passes alone, and `count` says how much
    that was.

    Args:
        model: The network.
        units: Groups from `find_units`, or made by hand.
        inputs: Also collect the mean input of every writing layer, see `Activity.input_means`, or of those named.
        features: Also keep up to this many rows of the penultimate representation, see `Activity.features`.
        every: Look at the first of so many forward passes; 1: at all.

    Yields:
        The statistics, which can be read inside the block and after it.

    Raises:
        UserError: If a group does not fit the model, or `every` is no whole number of at least 1.
    """
    activity = Activity(model, units, inputs=inputs, features=features, every=every)
    try:
        activity.attach()
        yield activity
    finally:
        activity.detach()
