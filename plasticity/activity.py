"""Watch hidden units: running statistics of every unit, kept on the model's device without a host sync."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from plasticity.errors import UserError
from plasticity.groups import UnitGroup, UnitGroups, layer, unwrap
from plasticity.tracing.functions import ACTIVATION_MODULES, NON_NEGATIVE, WATCHED_FUNCTIONS


@dataclass(frozen=True)
class UnitStatistics:
    """What was seen of the units of one group; one observation is one unit at one sample and position.

    Attributes:
        fired: (size,) int64, observations with an activation above 0; a count, not a rate.
        count: Observations of each unit: samples x positions.
        mean: (size,) float64, mean activation; NaN where nothing was seen.
        mean_abs: (size,) float64, mean magnitude of the activation; NaN where nothing was seen.
    """

    fired: Tensor
    count: int
    mean: Tensor
    mean_abs: Tensor


def _sum_type(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


class _Sums:
    """Running sums over all dimensions but the one that holds the units."""

    def __init__(self, group: UnitGroup, dim: int | None) -> None:
        self.group = group
        self.dim = dim
        self.signed = group.activation not in NON_NEGATIVE
        self.count = 0
        self.fired: Tensor | None = None
        self.total: Tensor | None = None
        self.total_abs: Tensor | None = None

    def add(self, activations: Tensor) -> None:
        """Add the activations of one call."""
        with torch.no_grad():
            h = activations.detach()
            dtype = _sum_type(h.device)
            fired = self._per_unit(h > 0, torch.int64)
            total_abs = self._per_unit(h.abs() if self.signed else h, dtype)
            total = self._per_unit(h, dtype) if self.signed else total_abs
            self.count += h.numel() // self.group.size
            if self.fired is None or self.total is None or self.total_abs is None:
                self.fired, self.total_abs = fired, total_abs
                self.total = total if self.signed else total_abs
            else:
                self.fired += fired
                self.total_abs += total_abs
                if self.signed:
                    self.total += total

    def _per_unit(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        if self.dim is None:
            return values.sum(dtype=dtype).view(1)
        dim = values.dim() + self.dim
        length = values.shape[dim] if dim >= 0 else 0
        unit_of = self.group.site.unit_of if self.group.site is not None else None
        expected = self.group.size if unit_of is None else len(unit_of)
        if length == 0 or length % expected or (unit_of is not None and length != expected):
            raise UserError(
                f"group '{self.group.name}' of {self.group.size} units sees activations of shape "
                f"{tuple(values.shape)}; find the units again after the model or its input changes"
            )
        others = [d for d in range(values.dim()) if d != dim]
        sums = values.sum(others, dtype=dtype) if others else values.to(dtype)
        if unit_of is not None:
            return sums.new_zeros(self.group.size).index_add_(0, unit_of.to(sums.device, non_blocking=True), sums)
        return sums if length == self.group.size else sums.view(self.group.size, -1).sum(1)

    def statistics(self, device: torch.device) -> UnitStatistics:
        size = self.group.size
        if self.fired is None or self.total is None or self.total_abs is None:
            nothing = torch.full((size,), float("nan"), dtype=_sum_type(device), device=device)
            return UnitStatistics(torch.zeros(size, dtype=torch.int64, device=device), 0, nothing, nothing.clone())
        return UnitStatistics(self.fired.clone(), self.count, self.total / self.count, self.total_abs / self.count)


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
        self, model: nn.Module, units: Iterable[UnitGroup], *, inputs: bool = False, features: int = 0
    ) -> None:
        self.model = unwrap(model)
        self.units = units if isinstance(units, UnitGroups) else UnitGroups(units)
        self._inputs, self._features = inputs, features
        self._hooks: ExitStack | None = None
        self._mode: _FunctionCalls | None = None
        self._modules: list[str] = []
        self._calls: dict[str, int] = {}
        self._by_function: dict[str, dict[int, _Sums]] = {}
        self._by_output: dict[str, dict[int, list[_Sums]]] = {}
        self.reset()

    # --- results -----------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything seen so far."""
        self._sums = {group.name: _Sums(group, self._dim(group)) for group in self.units}
        self._input_sums: dict[str, tuple[Tensor, int]] = {}
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
        if not self._inputs:
            raise UserError("input means are collected only by watch(..., inputs=True)")
        return {name: total / count for name, (total, count) in self._input_sums.items()}

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
        stack.callback(root.register_forward_pre_hook(self._enter_forward).remove)
        for name in self._callers(modules):
            stack.callback(modules[name].register_forward_pre_hook(self._pusher(name)).remove)
            stack.callback(modules[name].register_forward_hook(self._pop, always_call=True).remove)
        for name in self._by_output:
            stack.callback(modules[name].register_forward_hook(self._output_hook(name)).remove)
        if self._inputs:
            for name in {write.layer for group in self.units for write in group.writes}:
                stack.callback(layer(root, name).register_forward_pre_hook(self._input_hook(name)).remove)
        if self._features:
            for name in self.units.outputs:
                if name in modules:
                    stack.callback(modules[name].register_forward_pre_hook(self._feature_hook).remove)
        stack.callback(root.register_forward_hook(self._exit_forward, always_call=True).remove)
        if any(getattr(module, "_compiled_call_impl", None) is not None for module in modules.values()):
            raise UserError("watch cannot see into a model compiled by model.compile(); watch it before compiling")

    def _callers(self, modules: dict[str, nn.Module]) -> list[str]:
        """Name the modules whose calls must be told apart: those that call watched functions, and all inside them."""
        found = []
        for name, module in modules.items():
            inside = any(not owner or name == owner or name.startswith(owner + ".") for owner in self._by_function)
            plain = type(module).__module__.startswith("torch.nn.modules") and type(module) not in ACTIVATION_MODULES
            if name and inside and not (plain and next(module.children(), None) is None):
                found.append(name)
        return found

    def _enter_forward(self, module: nn.Module, args: Any) -> None:
        self._leave_forward()
        self._calls = {}
        self._modules = [""]
        if self._by_function:
            self._mode = _FunctionCalls(self)
            self._mode.__enter__()

    def _exit_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._leave_forward()

    def _leave_forward(self) -> None:
        self._modules = []
        if self._mode is not None:
            mode, self._mode = self._mode, None
            mode.__exit__(None, None, None)

    def _pusher(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if self._modules:
                self._modules.append(name)

        return hook

    def _pop(self, module: nn.Module, args: Any, output: Any) -> None:
        if len(self._modules) > 1:
            self._modules.pop()

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
                if isinstance(output, Tensor):
                    self._seen(sums, output)

        return hook

    def _seen(self, sums: _Sums, activations: Tensor) -> None:
        sums.add(activations)
        if self._features and not self.units.outputs and sums.group is self.units[len(self.units) - 1]:
            self._keep(activations, sums.dim)

    def _input_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if not self._modules or not args or not isinstance(args[0], Tensor):
                return
            with torch.no_grad():
                x = args[0].detach()
                dim = x.dim() + _unit_dim(module)
                total = x.sum([d for d in range(x.dim()) if d != dim], dtype=_sum_type(x.device))
                before, count = self._input_sums.get(name, (torch.zeros_like(total), 0))
                self._input_sums[name] = (before + total, count + x.numel() // x.shape[dim])

        return hook

    def _feature_hook(self, module: nn.Module, args: Any) -> None:
        if self._modules and args and isinstance(args[0], Tensor):
            self._keep(args[0], _unit_dim(module))

    def _keep(self, x: Tensor, dim: int | None) -> None:
        room = self._features - sum(len(rows) for rows in self._rows)
        if room <= 0 or dim is None:
            return
        rows = x.detach()
        if dim != -1:
            rows = rows.flatten(rows.dim() + dim + 1).mean(-1)
        rows = rows.reshape(-1, rows.shape[-1])[:room]
        self._rows.append(rows.clone())

    def _dim(self, group: UnitGroup) -> int | None:
        if group.site is not None:
            return group.site.dim
        return _unit_dim(layer(self.model, group.writes[0].layer))


def _unit_dim(module: nn.Module) -> int:
    """Return the negative dimension of a layer's input and output that holds features or channels."""
    return -1 if isinstance(module, nn.Linear) else -1 - len(getattr(module, "kernel_size", ()))


@contextmanager
def watch(
    model: nn.Module, units: Iterable[UnitGroup], *, inputs: bool = False, features: int = 0
) -> Iterator[Activity]:
    """Collect statistics of hidden units over every forward pass of a model inside the block.

    Only forward passes of the whole model count, each activation once; what is recomputed for a backward pass does
    not. Nothing is copied to the host. Sums are float64 and counts int64, also under autocast. A compiled model runs
    uncompiled inside the block.

    Args:
        model: The network.
        units: Groups from `find_units`, or made by hand.
        inputs: Also collect the mean input of every writing layer, see `Activity.input_means`.
        features: Also keep up to this many rows of the penultimate representation, see `Activity.features`.

    Yields:
        The statistics, which can be read inside the block and after it.

    Raises:
        UserError: If a group does not fit the model.
    """
    activity = Activity(model, units, inputs=inputs, features=features)
    with ExitStack() as stack:
        if unwrap(model) is not model and hasattr(model, "_orig_mod"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(activity.detach)
        activity.attach()
        yield activity
