"""Plasticity injection: a new head learns what is missing, while the old one stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.architecture.head import find_head
from plasticity.architecture.injected import Injection
from plasticity.architecture.rewriting import Example, note, parameter_count
from plasticity.errors import UserError
from plasticity.groups import unwrap
from plasticity.surgery.masks import Removed
from plasticity.tracing.preserve import Uncompiled, preserved
from plasticity.units import find_units

_NAME = "injection"


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
        injection.put_back()
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
    return [[names[part] for part in each.head()] for each in network.modules() if isinstance(each, Injection)]


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
    with preserved(model), torch.no_grad(), Uncompiled():
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
