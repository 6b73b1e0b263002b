"""Run a model once and record how units move through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from plasticity.errors import TraceError
from plasticity.tracing import rules
from plasticity.tracing.branches import branches_of
from plasticity.tracing.functions import ACTIVATION_MODULES, WATCHED_FUNCTIONS, activation_name
from plasticity.tracing.ledger import Ledger
from plasticity.tracing.preserve import preserved
from plasticity.tracing.sites import open_site

_LEAVES_PYTORCH: frozenset[Callable[..., Any]] = frozenset(
    {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.data_ptr, Tensor.__dlpack__}
)
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
        self.last = "its start"

    @property
    def where(self) -> str:
        return self.stack[-1][0]

    def place(self) -> str:
        name, module = self.stack[-1]
        inside = f"module '{name}' ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
        return f"{inside}, after {self.last}"


class _Operators(TorchDispatchMode):
    """Every operator, below autograd."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tracer, ledger = self.tracer, self.tracer.ledger
        inputs = rules.tensors(args, kwargs)
        before = [ledger.value(tensor) for tensor in inputs]
        result = func(*args, **kwargs)
        base = func._schema.name.split("::")[-1]
        name = base if base.startswith("__") else base.removesuffix("_")
        tracer.last = f"`{name}`"
        touched = [parameter for tensor in inputs for parameter in ledger.parameters.touch(tensor)]
        rule = rules.RULES.get(name)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = rules.pointwise
        if touched and rule not in (rules.move, rules.copy, rules.convolution, rules.matrix_product):
            for parameter in touched:
                uses = ledger.parameters.weight_uses
                uses[parameter] = uses.get(parameter, 0) + 1
        for declared, argument in zip(func._schema.arguments, args, strict=False):
            if declared.alias_info is not None and declared.alias_info.is_write and isinstance(argument, Tensor):
                ledger.overwritten(argument)
        operation = rules.Operation(func, name, args, kwargs, before, result, tracer.where)
        if any(value is not None and value.planes for value in before) or rule in _WRITERS:
            (rule or rules.mix)(ledger, operation)
        else:
            copies = rule is rules.copy
            for output in rules.tensors(result):
                if copies and inputs:
                    ledger.parameters.alias(inputs[0], output)
                ledger.record(output, None)
        return result


_WRITERS = (rules.convolution, rules.matrix_product)


class _Functions(TorchFunctionMode):
    """Every call of the Python interface: activations by name, and values that leave PyTorch."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tracer, ledger = self.tracer, self.tracer.ledger
        if func in _LEAVES_PYTORCH:
            value = ledger.value(args[0])
            if value is not None:
                ledger.escape(value.labels(), f"its value leaves PyTorch by {func.__name__}() in `{tracer.where}`")
        if func not in WATCHED_FUNCTIONS:
            return func(*args, **kwargs)
        call = tracer.counts.get(tracer.where, 0)
        tracer.counts[tracer.where] = call + 1
        value = ledger.value(args[0]) if args and isinstance(args[0], Tensor) else None
        result = func(*args, **kwargs)
        name = activation_name(func, args, kwargs)
        if name is not None and value is not None and isinstance(result, Tensor):
            module_name, module = tracer.stack[-1]
            leaf = type(module) in ACTIVATION_MODULES
            name = ACTIVATION_MODULES.get(type(module), name)
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
            if output is not None or len(tracer.stack) > 1:
                tracer.stack.pop()

        def branch(name: str, layers: list[str]) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any) -> None:
                _read_branches(tracer.ledger, name, layers, args)

            return hook

        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                kind = getattr(module, "original_name", type(module).__name__)
                raise TraceError(
                    f"module '{name}' ({kind}) is TorchScript, whose operations cannot be followed; pass the model it "
                    f"was made from, or {BY_HAND}"
                )
            layers = branches_of(module)
            if layers:
                stack.callback(module.register_forward_pre_hook(branch(name, layers)).remove)
            if module is not model:
                stack.callback(module.register_forward_pre_hook(enter(name)).remove)
                stack.callback(module.register_forward_hook(leave).remove)
        yield


def _read_branches(ledger: Ledger, name: str, layers: list[str], args: Any) -> None:
    value = ledger.value(args[0]) if args and isinstance(args[0], Tensor) else None
    for layer in layers:
        full = f"{name}.{layer}" if name else layer
        ledger.parameters.used.update({f"{full}.weight", f"{full}.bias"})
        if full not in ledger.outputs:
            ledger.outputs.append(full)
        if value is not None:
            rules.read(ledger, full, value, -1)


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
    ledger = Ledger(model)
    tracer = _Tracer(model, ledger)
    inputs = example if isinstance(example, tuple) else (example,)
    with preserved(model), _followed(tracer, model), torch.enable_grad():
        try:
            with torch.compiler.set_stance("force_eager"), _Operators(tracer), _Functions(tracer):
                output = model(*inputs)
        except TraceError:
            raise
        except Exception as error:
            message = str(error).strip().splitlines()
            hint = ""
            if len(tracer.stack) == 1 and isinstance(error, TypeError):
                hint = "pass all positional inputs of the model as a tuple, such as example=(x, task_labels); or "
            raise TraceError(
                f"the model cannot be traced: {type(error).__name__} in {tracer.place()}: "
                f"{message[0] if message else 'no message'}; {hint}{BY_HAND}"
            ) from error
    _close(ledger, output)
    return ledger


def _close(ledger: Ledger, output: Any) -> None:
    """Let what reaches the output escape, and note which layers write it."""
    for tensor in _output_tensors(output):
        value = ledger.value(tensor)
        if value is None:
            continue
        labels = value.labels()
        ledger.escape(labels, "it reaches the output of the model")
        for number in torch.unique(ledger.call_of(labels)).tolist():
            if number >= 0 and ledger.calls[number].layer not in ledger.outputs:
                ledger.outputs.append(ledger.calls[number].layer)


def _output_tensors(output: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for leaf in tree_flatten(output)[0]:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found.extend(_output_tensors(dict(leaf)))
        elif hasattr(leaf, "__dict__"):
            found.extend(part for part in vars(leaf).values() if isinstance(part, Tensor))
    return found
