"""Run a model once and record how units move through it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from plasticity.errors import TraceError
from plasticity.tracing import rules
from plasticity.tracing.branches import branches_of
from plasticity.tracing.functions import ACTIVATION_MODULES, WATCHED_FUNCTIONS, activation_name
from plasticity.tracing.ledger import Ledger
from plasticity.tracing.outputs import close, let_go
from plasticity.tracing.parameters import storage
from plasticity.tracing.preserve import Uncompiled, preserved
from plasticity.tracing.sites import open_site
from plasticity.tracing.unwatched import unwatched

_LEAVES_PYTORCH: frozenset[Callable[..., Any]] = frozenset(
    getattr(Tensor, name)
    for name in ("numpy", "tolist", "__array__", "data_ptr", "__dlpack__", "storage", "untyped_storage")
)
_WHOLE: dict[Callable[..., Any], Any] = {
    getattr(home, name): getattr(torch.ops.aten, name).default
    for name in ("rms_norm",)
    for home in (F, torch)
    if hasattr(home, name)
}
"""Functions that PyTorch takes apart on some devices, and the operator that each is."""
BY_HAND = (
    'declare its groups by hand, for example UnitGroup("fc1", size=128, activation="relu", at="act1", '
    'consumers=[("fc2", 1)])'
)


class _Tracer:
    """Where the trace is: the stack of running modules, and how many activations each has called."""

    def __init__(self, model: nn.Module, ledger: Ledger) -> None:
        self.ledger = ledger
        self.stack: list[tuple[str, nn.Module]] = [("", model)]
        self.counts: dict[str, int] = {}
        self.reached = "at its start"
        self.failed: tuple[BaseException, str] | None = None

    @property
    def where(self) -> str:
        return self.stack[-1][0]

    def place(self) -> str:
        name, module = self.stack[-1]
        inside = f"module '{name}' ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
        return f"{inside}, {self.reached}"

    def fail(self, error: BaseException | None) -> None:
        """Remember in which module an exception appeared first."""
        if error is not None and (self.failed is None or self.failed[0] is not error):
            self.failed = (error, self.place())


class _Operators(TorchDispatchMode):
    """Every operator, below autograd."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # or what the rules compute would be followed, too
            return self.follow(func, args, kwargs or {})

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and note what it does to units."""
        tracer, ledger = self.tracer, self.tracer.ledger
        inputs = rules.tensors(args, kwargs)
        before = [ledger.value(tensor) for tensor in inputs]
        base = func._schema.name.split("::")[-1]
        name = base if base.startswith("__") else base.removesuffix("_")
        tracer.reached = f"in `{name}`"
        result = func(*args, **kwargs)
        tracer.reached = f"after `{name}`"
        operation = rules.Operation(func, name, args, kwargs, inputs, before, result, tracer.where)
        rule = rules.rule_for(func, name)
        _note_parameters(ledger, operation, rule)
        for position, declared in enumerate(func._schema.arguments):
            if declared.alias_info is not None and declared.alias_info.is_write:
                given = args[position] if position < len(args) else kwargs.get(declared.name)
                for tensor in rules.tensors(given):
                    ledger.overwritten(tensor)
        if any(ledger.holds_data(tensor) for tensor in inputs):
            for output in operation.results:
                ledger.mark_data(output)
        if any(value is not None for value in before) or rule in rules.WRITERS:
            rule(ledger, operation)
        else:
            for output in operation.results:
                ledger.record(output, None)
        return result


def _note_parameters(ledger: Ledger, operation: rules.Operation, rule: rules.Rule) -> None:
    """Count an operation as a use of every parameter it computes with; views and plain copies are none."""
    outputs = operation.results
    if outputs and not any(output.numel() for output in outputs):
        return  # what is run on no samples shows nothing
    for tensor in operation.inputs:
        names = ledger.parameters.names_of(tensor)
        if not names or (rule is rules.COPIES and all(ledger.parameters.copied(tensor, copy) for copy in outputs)):
            continue
        memory = storage(tensor)
        if rule is rules.MOVES and all(_shows(output, memory) for output in outputs):
            continue
        for name in names:
            ledger.parameters.uses[name] = ledger.parameters.uses.get(name, 0) + 1


def _shows(tensor: Tensor, memory: torch.UntypedStorage | None) -> bool:
    own = storage(tensor)
    return own is not None and memory is not None and own._cdata == memory._cdata


class _Functions(TorchFunctionMode):
    """Every call of the Python interface: activations by name, and values that leave PyTorch."""

    def __init__(self, tracer: _Tracer, operators: _Operators) -> None:
        super().__init__()
        self.tracer = tracer
        self.operators = operators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tracer, ledger = self.tracer, self.tracer.ledger
        if func in _WHOLE:
            with torch._C.DisableTorchFunction(), _disable_current_modes():
                return self.operators.follow(_WHOLE[func], args, kwargs)
        if func in _LEAVES_PYTORCH:
            value = ledger.value(args[0])
            ledger.show(args[0])
            if value is not None:
                ledger.escape(value.labels(), f"its value leaves PyTorch by {func.__name__}() in `{tracer.where}`")
        if func not in WATCHED_FUNCTIONS:
            return func(*args, **kwargs)
        call = tracer.counts.get(tracer.where, 0)
        tracer.counts[tracer.where] = call + 1
        x = args[0] if args else kwargs.get("input")
        value = ledger.value(x) if isinstance(x, Tensor) else None
        result = func(*args, **kwargs)
        name = activation_name(func, args, kwargs)
        if name is not None and isinstance(x, Tensor) and storage(x) is None:
            place = f"{name} in `{tracer.where}`" if tracer.where else name
            ledger.skipped.append(f"{place}: a {type(x).__name__} of a transform or a sparse layout cannot be followed")
        if name is not None and value is not None and isinstance(result, Tensor):
            module_name, module = tracer.stack[-1]
            leaf = type(module) in ACTIVATION_MODULES
            name = ACTIVATION_MODULES.get(type(module), name)
            with torch._C.DisableTorchFunction(), _disable_current_modes():  # what it computes is not the model's
                open_site(ledger, result, value, name, module_name, call, function=not leaf)
        return result


@contextmanager
def _followed(tracer: _Tracer, model: nn.Module) -> Iterator[None]:
    """Keep the stack of running modules, and read for the branches that a forward pass does not take."""
    with ExitStack() as stack:

        def enter(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any) -> None:
                tracer.stack.append((name, module))

            return hook

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if output is None:  # also called when the module raises
                tracer.fail(sys.exc_info()[1])
            depth = max((i for i, (_, running) in enumerate(tracer.stack) if running is module), default=0)
            if depth:
                del tracer.stack[depth:]

        def branch(name: str, layers: list[str]) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                given = rules.tensors(args, kwargs)
                if given:
                    with torch._C.DisableTorchFunction(), _disable_current_modes():
                        _read_branches(tracer.ledger, name, layers, given[0])

            return hook

        for name, module in model.named_modules():
            layers = branches_of(module)
            if layers:
                stack.callback(module.register_forward_pre_hook(branch(name, layers), with_kwargs=True).remove)
            if module is not model:
                stack.callback(module.register_forward_pre_hook(enter(name)).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


def _read_branches(ledger: Ledger, name: str, layers: list[str], x: Tensor) -> None:
    value = ledger.value(x)
    for layer in layers:
        full = f"{name}.{layer}" if name else layer
        for parameter, _ in ledger.modules[full].named_parameters():
            ledger.parameters.uses.setdefault(f"{full}.{parameter}", 0)
        if full not in ledger.outputs:
            ledger.outputs.append(full)
        if value is not None:
            rules.read(ledger, full, value, -1)


def _refuse(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TraceError(f"units are found in a module, and this is a {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"module '{name}'" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            kind = getattr(module, "original_name", type(module).__name__)
            other = f"; or, for units outside of it, {BY_HAND}" if name else ""
            raise TraceError(
                f"{where} ({kind}) is TorchScript, whose operations cannot be followed; use the module it was made "
                f"from{other}"
            )
        if any(is_lazy(p) for p in module.parameters(recurse=False)):
            raise TraceError(f"{where} ({type(module).__name__}) has no weights yet; run the model once before")


def _hint_of_devices(model: nn.Module, inputs: Any) -> str:
    own = sorted({str(parameter.device) for parameter in model.parameters()})
    given = sorted({str(tensor.device) for tensor in rules.tensors(inputs)})
    if not own or not given or set(own) & set(given):
        return ""
    return f"the model is on {', '.join(own)} and the example on {', '.join(given)}: put both on one device; or "


def trace(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Ledger:
    """Run a model once on an example and return the record.

    Args:
        model: The network, not wrapped.
        example: Its input, or a tuple of its positional inputs.

    Returns:
        The record of every unit's writers, activation and readers.

    Raises:
        TraceError: If the forward pass fails or cannot be followed.
    """
    _refuse(model)
    ledger = Ledger(model)
    tracer = _Tracer(model, ledger)
    with preserved(model), unwatched(), _followed(tracer, model), torch.enable_grad(), Uncompiled():
        inputs = example if isinstance(example, tuple) else (example,)
        inputs = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, inputs)
        for tensor in rules.tensors(inputs):
            ledger.mark_data(tensor)
        try:
            with _Operators(tracer) as operators, _Functions(tracer, operators):
                output = model(*inputs)
        except TraceError:
            raise
        except Exception as error:
            tracer.fail(error)
            place = tracer.failed[1] if tracer.failed is not None else tracer.place()
            message = str(error).strip().splitlines()
            hint = ""
            if isinstance(error, TypeError) and f"{type(model).__name__}.forward()" in str(error):
                hint = "pass all positional inputs of the model as a tuple, such as example=(x, task_labels); or "
            hint = hint or _hint_of_devices(model, inputs)
            raise TraceError(
                f"the model cannot be traced: {type(error).__name__} in {place}: "
                f"{message[0] if message else 'no message'}; {hint}{BY_HAND}"
            ) from error
        close(ledger, model, output)
    del output, inputs
    let_go(ledger)
    return ledger
