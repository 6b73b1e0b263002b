"""What stands in a network after plasticity injection: the old head and the new one as it began."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from plasticity.errors import UserError
from plasticity.tracing.preserve import compile_anew
from plasticity.tracing.unwatched import unwatched


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
        compile_anew()

    def detach(self) -> None:
        """Act no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        compile_anew()

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

    def head(self) -> tuple[nn.Module, ...]:
        """Return the modules of the head, in order."""
        return tuple(self._head)

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the head the weights of the old one again."""
        for place, name, tensor in self._own():
            tensor.copy_(getattr(self, f"frozen_{self._keys[place, name]}"))

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
        """Run the head without hooks or watchers, who are about the new part, nor dropout; batch statistics stay."""
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
            with unwatched():
                yield
        finally:
            for module, state in zip(modules, kept, strict=True):
                vars(module).update(state)


def _sum(frozen: Any, new: Any, begun: Any) -> Any:
    """Add the three parts up; a head of many tasks that is asked for all gives an output for each."""
    if isinstance(new, dict):
        return {key: _sum(frozen[key], new[key], begun[key]) for key in new}
    return frozen + (new - begun)  # in this order exactly the frozen part as long as the other two are the same
