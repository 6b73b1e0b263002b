"""Plasticity injection: a new head learns what is missing, while the old one stays as it is."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from plasticity.architecture.head import find_head
from plasticity.architecture.rewriting import Example, note, parameter_count
from plasticity.errors import UserError
from plasticity.groups import unwrap
from plasticity.masks import Removed
from plasticity.tracing.preserve import preserved
from plasticity.units import find_units

_NAME = "injection"


class Injection(nn.Module):
    """What is added to the output of a head: its frozen old self, and minus a frozen copy of its new one.

    It is a child of the last module of the head, named "injection", and holds the weights of both frozen parts as
    buffers: they are saved and moved with the network, and no optimizer sees them. Made by `inject_plasticity`.

    Outputs and heads that are added later begin with the same weights in all parts, so that they are what they would
    have been on the old features; masks of outputs, as Avalanche's heads have, are those of the new part throughout.

    Args:
        head: The modules of the head, in order.
    """

    def __init__(self, head: Sequence[nn.Module]) -> None:
        super().__init__()
        self._head = list(head)  # a list, so that they do not become children
        self._keys: dict[tuple[int, str], int] = {}
        self._entered: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._handles: list[Any] = []

    def keep(self, part: str) -> None:
        """Keep the present weights of the head as those of a part.

        Args:
            part: "frozen", the old head, or "copy", the new one as it begins.
        """
        for place, name, tensor in self._own():
            number = self._keys.setdefault((place, name), len(self._keys))
            self.register_buffer(f"{part}_{number}", tensor.detach().clone())

    def attach(self) -> None:
        """Begin to act on the forward passes of the head."""
        self._handles = [
            self._head[0].register_forward_pre_hook(self._enter, with_kwargs=True),
            self._head[-1].register_forward_hook(self._leave, with_kwargs=True),
        ]

    def detach(self) -> None:
        """Act no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def parts(self) -> dict[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return for each parameter and running statistic of the head: in the old head, now, and as the new one began.

        The output of the head is that of the first, plus that of the second, minus that of the third.
        """
        self._grow()
        found: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}
        for place, name, tensor in self._own():
            number = self._keys[place, name]
            frozen, begun = getattr(self, f"frozen_{number}"), getattr(self, f"copy_{number}")
            found[tensor] = (frozen, tensor.detach().clone(), begun)
        return found

    def layers(self) -> list[nn.Module]:
        """Return the modules of the head that have parameters of their own, in the order in which it holds them."""
        inside = [module for head in self._head for module in head.modules() if not isinstance(module, Injection)]
        return [module for module in inside if next(module.parameters(recurse=False), None) is not None]

    def first(self) -> nn.Module:
        """Return the module that the head begins with."""
        return self._head[0]

    def reset_parameters(self) -> None:
        """Forget the old head: what is added becomes 0."""
        for number in self._keys.values():
            self.register_buffer(f"frozen_{number}", getattr(self, f"copy_{number}").clone())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_entered": None}  # what a pass through a part of the head may have left

    def _own(self) -> Iterator[tuple[int, str, Tensor]]:
        """List the tensors that each part has for itself: parameters, and running statistics."""
        for place, module in enumerate(self._head):
            for prefix, child in module.named_modules():
                if isinstance(child, Injection):
                    continue
                tensors = dict(child.named_parameters(recurse=False))
                if isinstance(getattr(child, "running_mean", None), Tensor):
                    tensors.update(child.named_buffers(recurse=False))
                for name, tensor in tensors.items():
                    yield place, f"{prefix}.{name}" if prefix else name, tensor

    def _grow(self) -> None:
        """Give the frozen parts what the head has got since."""
        for place, name, tensor in self._own():
            number = self._keys.setdefault((place, name), len(self._keys))
            for key in (f"frozen_{number}", f"copy_{number}"):
                old = getattr(self, key, None)
                if old is None or old.shape != tensor.shape:
                    grown = tensor.detach().clone()
                    if old is not None:
                        grown[tuple(slice(size) for size in old.shape)] = old
                    self.register_buffer(key, grown)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._entered = (args, kwargs)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._entered is None:
            raise UserError("plasticity injection: the last module of the head was called without the first")
        (entered, self._entered) = (self._entered, None)
        rest = (args[1:], kwargs) if len(self._head) > 1 else ((), {})
        self._grow()
        with self._quietly():
            frozen, copied = (self._part(part, entered, rest) for part in ("frozen", "copy"))
        return _sum(frozen, output, copied)

    def _part(
        self, part: str, entered: tuple[tuple[Any, ...], dict[str, Any]], rest: tuple[tuple[Any, ...], dict[str, Any]]
    ) -> Any:
        tensors: list[dict[str, Tensor]] = [{} for _ in self._head]
        for (place, name), number in self._keys.items():
            tensors[place][name] = getattr(self, f"{part}_{number}")
        args, kwargs = entered
        output: Any = None
        for place, module in enumerate(self._head):
            if place:
                args, kwargs = ((output, *rest[0]), rest[1]) if place == len(self._head) - 1 else ((output,), {})
            output = functional_call(module, tensors[place], args, kwargs)
        return output

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Run the head without hooks, which are about the new part, and without dropout; batch statistics stay."""
        modules = [module for head in self._head for module in head.modules()]
        kept = [
            {key: vars(module)[key] for key in ("_forward_pre_hooks", "_forward_hooks", "training")}
            for module in modules
        ]
        try:
            for module in modules:  # past `Module.__setattr__`, which takes longer than a small head
                vars(module).update(_forward_pre_hooks=OrderedDict(), _forward_hooks=OrderedDict())
                if not isinstance(getattr(module, "running_mean", None), Tensor):
                    vars(module)["training"] = False
            yield
        finally:
            for module, state in zip(modules, kept, strict=True):
                vars(module).update(state)


def _sum(frozen: Any, new: Any, begun: Any) -> Any:
    """Add the three parts up; a head of many tasks that is asked for all gives an output for each."""
    if isinstance(new, dict):
        return {key: _sum(frozen[key], new[key], begun[key]) for key in new}
    return frozen + (new - begun)  # in this order exactly the frozen part as long as the other two are the same


def inject_plasticity(
    model: nn.Module,
    example: Example,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
    *,
    head: Sequence[str] | None = None,
    removed: Sequence[Removed] = (),
) -> tuple[str, ...]:
    """Give a network a new head that learns, in addition to the one it has, which is frozen.

    With h the head, w its weights and v new ones, the output h(x; w) becomes

        h(x; w) + h(x; v) - h(x; v0)        v0: v as it is now; w and v0 do not change any more

    The output is what it was, bit for bit where the same operations give the same bits; so are the number of trained
    parameters, their names and the objects themselves, which hold v from now on. What comes before the head goes on
    learning through all three parts. Costs two more passes through the head.

    Args:
        model: The network, which is changed in place.
        example: An input, or a tuple of its positional inputs.
        optimizer: Its state of the head's parameters is dropped.
        generator: Where new weights come from, the same for every device; None: PyTorch's own, of the CPU.
        head: Qualified names of the modules that make up the head, in order; None: those from the last hidden layer
            on. A single linear layer gains nothing: its gradient is the same for any weights.
        removed: Connections removed for good, which the new head does not have either.

    Returns:
        The names of the head's modules.

    Raises:
        UserError: If it was done before, the head cannot be told or has layers that cannot be made new, or the output
            would change, because something else reads what is computed within the head.

    Source: Nikishin et al. 2023, arXiv 2305.15555.
    """
    network = unwrap(model)
    if any(isinstance(module, Injection) for module in network.modules()):
        raise UserError("plasticity was injected into this network before; it can be done once")
    names = find_head(network, example, find_units(network, example), head)
    modules = [network.get_submodule(name) for name in names]
    _require_resets(modules, names)
    before = _outputs(network, example)
    count = parameter_count(network)
    injection = Injection(modules)
    injection.keep("frozen")
    _renew(modules, generator)
    for each in removed:
        each.apply(model)
    injection.keep("copy")
    home = _home(modules[-1])
    home.add_module(_NAME, injection.train(home.training))
    injection.attach()
    shift = (_outputs(network, example) - before).abs().max()
    if not bool(shift <= 1e-4 * before.abs().max()):
        injection.detach()
        del home._modules[_NAME]
        with torch.no_grad():
            for place, name, tensor in injection._own():
                tensor.copy_(getattr(injection, f"frozen_{injection._keys[place, name]}"))
        raise UserError(f"plasticity cannot be injected into {' -> '.join(names)}: the output would change")
    if optimizer is not None:
        for module in modules:
            for parameter in module.parameters():
                optimizer.state.pop(parameter, None)
    note(network, "plasticity-injection", count, f"a new head of {' -> '.join(names)}, the old one frozen")
    return names


def injected_heads(model: nn.Module) -> list[list[str]]:
    """Return the qualified names of the modules of every head that plasticity was injected into."""
    network = unwrap(model)
    names = {module: name for name, module in network.named_modules()}
    return [[names[part] for part in each._head] for each in network.modules() if isinstance(each, Injection)]


def repeat_injection(model: nn.Module, names: Sequence[str]) -> None:
    """Build a network as `inject_plasticity` has built an equal one; all weights stay as they are.

    The three parts of the head begin equal. Their values are then loaded from where the equal network was saved.

    Args:
        model: The network, which is changed in place.
        names: Of the head's modules, in order.
    """
    network = unwrap(model)
    modules = [network.get_submodule(name) for name in names]
    injection = Injection(modules)
    injection.keep("frozen")
    injection.keep("copy")
    _home(modules[-1]).add_module(_NAME, injection)
    injection.attach()


def _home(module: nn.Module) -> nn.Module:
    """Return a module that does not call its children in turn, to hold one more child."""
    while isinstance(module, nn.Sequential):
        module = module[-1]
    return module


def _outputs(model: nn.Module, example: Example) -> Tensor:
    with preserved(model), torch.no_grad():
        model.eval()
        output = model(*(example if isinstance(example, tuple) else (example,)))
    assert isinstance(output, Tensor)
    return output


def _resettable(modules: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for module in modules:
        for name, child in module.named_modules():
            if next(child.parameters(recurse=False), None) is not None:
                yield name, child


def _require_resets(modules: Sequence[nn.Module], names: Sequence[str]) -> None:
    for name, child in _resettable(modules):
        if not callable(getattr(child, "reset_parameters", None)):
            raise UserError(
                f"plasticity cannot be injected into {' -> '.join(names)}: "
                f"{name or 'a part'} ({type(child).__name__}) has no reset_parameters()"
            )


def _renew(modules: Sequence[nn.Module], generator: torch.Generator | None) -> None:
    """Draw new weights, in place, on the CPU, whose random numbers are the same for every device."""
    with torch.random.fork_rng(devices=[], enabled=generator is not None), torch.no_grad():
        if generator is not None:
            seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
            torch.default_generator.manual_seed(int(seed))
        for _, child in _resettable(modules):
            twin: Any = copy.deepcopy(child).to("cpu")
            twin.reset_parameters()
            for tensor, new in zip(
                [*child.parameters(recurse=False), *child.buffers(recurse=False)],
                [*twin.parameters(recurse=False), *twin.buffers(recurse=False)],
                strict=True,
            ):
                tensor.copy_(new)
