"""Watch hidden units: running statistics of every unit, kept on the model's device without a host sync."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, layer, unwrap
from plasticity.tracing.functions import ACTIVATION_MODULES, WATCHED_FUNCTIONS
from plasticity.tracing.hooks import WatchingHook
from plasticity.tracing.preserve import uncompiled
from plasticity.unit_statistics import Sums, UnitStatistics, plainly, sum_type

__all__ = ["Activity", "UnitStatistics", "watch"]


class _FunctionCalls(TorchFunctionMode):
    """Counts the activation functions that each module calls, and hands over the watched ones."""

    def __init__(self, activity: Activity) -> None:
        super().__init__()
        self.activity = activity

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in WATCHED_FUNCTIONS:
            self.activity._function_called(result)
        return result


class Activity:
    """Statistics of hidden units; made by `watch`.

    Attributes:
        model: The network, unwrapped.
        units: The groups that are watched.
    """

    def __init__(
        self, model: nn.Module, units: Iterable[UnitGroup], *, inputs: bool | Collection[str] = False, features: int = 0
    ) -> None:
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise UserError("the replicas of DataParallel cannot be watched; use one device or DistributedDataParallel")
        self.model = unwrap(model)
        self.units = units if isinstance(units, UnitGroups) else UnitGroups(units)
        writers = {write.layer for group in self.units for write in group.writes}
        self._inputs = (writers if inputs else set()) if isinstance(inputs, bool) else writers & set(inputs)
        self._asked_for_inputs = inputs is not False
        self._features = features
        self._hooks: ExitStack | None = None
        self._mode: _FunctionCalls | None = None
        self._modules: list[str] = []
        self._calls: dict[str, int] = {}
        self._by_function: dict[str, dict[int, Sums]] = {}
        self._by_output: dict[str, dict[int, list[Sums]]] = {}
        self.reset()

    # --- results -----------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything seen so far."""
        self._sums = {group.name: Sums(group, self._dim(group)) for group in self.units}
        self._input_sums: dict[str, tuple[Tensor, int]] = {}
        self._input_minima: dict[str, Tensor] = {}
        self._rows: list[Tensor] = []
        self._by_function.clear()
        self._by_output.clear()
        for group in self.units:
            sums = self._sums[group.name]
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
        return {name: total / count for name, (total, count) in self._input_sums.items()}

    def input_minima(self) -> dict[str, Tensor]:
        """Return the least input of each writing layer, 0-dimensional, by layer name.

        Raises:
            UserError: If `inputs=True` was not asked for.
        """
        if not self._asked_for_inputs:
            raise UserError("input minima are collected only by watch(..., inputs=True)")
        return dict(self._input_minima)

    def features(self) -> Tensor | None:
        """Return the penultimate representation seen first, (at most `features` rows, width), or None if none was.

        It is the input of the layer that writes the output, averaged over the positions of a convolution; where an
        activation writes the output, that of the last group.
        """
        return torch.cat(self._rows) if self._rows else None

    # --- hooks -------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Begin to watch: hooks are put on the model."""
        if self._hooks is not None:
            raise UserError("this activity is already attached")
        stack = ExitStack()
        try:
            self._attach(stack)
        except BaseException:
            stack.close()
            raise
        self._hooks = stack

    def detach(self) -> None:
        """Stop watching: every hook is taken off again."""
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None
            self._leave_forward()

    def _attach(self, stack: ExitStack) -> None:
        root = self.model
        modules = dict(root.named_modules())
        missing = [name for name in (*self._by_function, *self._by_output) if name not in modules]
        if missing:
            raise UserError(f"the model has no module '{missing[0]}'; find its units again after it changes")
        for name in ("", *self._by_output):
            if any(isinstance(modules[part], torch.jit.ScriptModule) for part in _path(name)):
                what = f"the output of '{name}'" if name else "the model"
                raise UserError(f"{what} cannot be watched: TorchScript has no hooks")
        stack.enter_context(uncompiled())
        before, after = self._before, self._after
        before(stack, root, self._enter_forward)
        for name in self._callers(modules):
            before(stack, modules[name], self._pusher(name))
            after(stack, modules[name], self._popper(name), always_call=True)
        for name in self._by_output:
            after(stack, modules[name], self._output_hook(name))
        for name in self._inputs:
            before(stack, layer(root, name), self._input_hook(name))
        if self._features:
            for name in self.units.outputs:
                if name in modules:
                    before(stack, modules[name], self._feature_hook)
        after(stack, root, self._exit_forward, always_call=True)

    @staticmethod
    def _before(stack: ExitStack, module: nn.Module, hook: Callable[..., None]) -> None:
        stack.callback(module.register_forward_pre_hook(WatchingHook(hook), with_kwargs=True).remove)

    @staticmethod
    def _after(stack: ExitStack, module: nn.Module, hook: Callable[..., None], always_call: bool = False) -> None:
        stack.callback(module.register_forward_hook(WatchingHook(hook), always_call=always_call).remove)

    def _callers(self, modules: dict[str, nn.Module]) -> list[str]:
        """Name the modules whose function calls must be told apart; PyTorch's own layers call no watched function."""
        found = []
        for name, module in modules.items() if self._by_function else ():
            plain = type(module).__module__.startswith("torch.nn.modules") and type(module) not in ACTIVATION_MODULES
            if name and not (plain and next(module.children(), None) is None):
                found.append(name)
        return found

    def _enter_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._leave_forward()
        self._calls = {}
        self._modules = [""]
        if self._by_function:
            self._mode = _FunctionCalls(self)
            self._mode.__enter__()  # type: ignore[no-untyped-call]  # torch does not annotate it

    def _exit_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._leave_forward()

    def _leave_forward(self) -> None:
        self._modules = []
        if self._mode is not None:
            mode, self._mode = self._mode, None
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch does not annotate it

    def _pusher(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._modules:
                self._modules.append(name)

        return hook

    def _popper(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._modules and self._modules[-1] == name:
                self._modules.pop()

        return hook

    def _function_called(self, result: Any) -> None:
        name = self._modules[-1]
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        sums = self._by_function.get(name, {}).get(call)
        if sums is not None and isinstance(result, Tensor):
            self._seen(sums, result)

    def _output_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not self._modules:  # called from outside the model's own forward
                return
            key = f"output of {name}"
            call = self._calls.get(key, 0)
            self._calls[key] = call + 1
            for sums in (*self._by_output[name].get(call, ()), *self._by_output[name].get(-1, ())):
                if not isinstance(output, Tensor):
                    raise UserError(f"group '{sums.group.name}': '{name}' returns a {type(output).__name__}, no tensor")
                self._seen(sums, output)

        return hook

    def _seen(self, sums: Sums, activations: Tensor) -> None:
        sums.add(activations)
        if self._features and not self.units.outputs and sums.group is self.units[len(self.units) - 1]:
            self._keep(activations, sums.dim)

    def _input_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._modules:
                return
            with plainly():
                x = _input(args, kwargs).detach()
                dim = x.dim() + _unit_dim(module)
                others = [d for d in range(x.dim()) if d != dim]
                total = x.sum(others, dtype=sum_type(x.device)) if others else x.to(sum_type(x.device), copy=True)
                before, count = self._input_sums.get(name, (torch.zeros_like(total), 0))
                self._input_sums[name] = (before + total, count + x.numel() // x.shape[dim])
                least = x.amin() if x.numel() else x.new_zeros(())
                self._input_minima[name] = torch.minimum(self._input_minima.get(name, least), least)

        return hook

    def _feature_hook(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._modules:
            self._keep(_input(args, kwargs), _unit_dim(module))

    def _keep(self, x: Tensor, dim: int | None) -> None:
        room = self._features - sum(len(rows) for rows in self._rows)
        if room <= 0 or dim is None:
            return
        with plainly():
            rows = x.detach()
            if dim != -1:
                rows = rows.flatten(rows.dim() + dim + 1).mean(-1)
            rows = rows.reshape(-1, rows.shape[-1])[:room]
            self._rows.append(rows.clone())

    def _dim(self, group: UnitGroup) -> int | None:
        if group.site is not None:
            return group.site.dim
        return _unit_dim(layer(self.model, group.writes[0].layer))


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return what a Linear or Conv layer was called with."""
    x: Tensor = args[0] if args else kwargs["input"]
    return x


def _path(name: str) -> list[str]:
    """Name a module and all modules around it."""
    parts = name.split(".")
    return ["", *(".".join(parts[: count + 1]) for count in range(len(parts) if name else 0))]


def _unit_dim(module: nn.Module) -> int:
    """Return the negative dimension of a layer's input and output that holds features or channels."""
    return -1 if isinstance(module, nn.Linear) else -1 - len(getattr(module, "kernel_size", ()))


@contextmanager
def watch(
    model: nn.Module, units: Iterable[UnitGroup], *, inputs: bool | Collection[str] = False, features: int = 0
) -> Iterator[Activity]:
    """Collect statistics of hidden units over every forward pass of a model inside the block.

    Only forward passes of the whole model count, each activation once; what is recomputed for a backward pass does
    not. Nothing is copied to the host. Sums are float64 and counts int64, also under autocast. A compiled model runs
    uncompiled inside the block.

    Args:
        model: The network.
        units: Groups from `find_units`, or made by hand.
        inputs: Also collect the mean input of every writing layer, see `Activity.input_means`, or of those named.
        features: Also keep up to this many rows of the penultimate representation, see `Activity.features`.

    Yields:
        The statistics, which can be read inside the block and after it.

    Raises:
        UserError: If a group does not fit the model.
    """
    activity = Activity(model, units, inputs=inputs, features=features)
    try:
        activity.attach()
        yield activity
    finally:
        activity.detach()
