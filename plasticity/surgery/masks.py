"""Permanent masks on weights: a removed connection stays removed, whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.errors import UserError
from plasticity.groups import layer, unwrap
from plasticity.surgery.optimizer_state import clean_state


class Removed(Protocol):
    """What was removed from a network for good."""

    def apply(self, model: nn.Module) -> None:
        """Set everything that is removed to 0 again."""

    def disturbed(self, model: nn.Module) -> bool:
        """Return whether something removed is not 0, as in a network that starts anew."""


class Masks:
    """A boolean tensor by layer name, True for the weights that are kept.

    The masks are applied by value: `apply` after every update sets removed weights to 0, `mask_gradients` before it
    keeps their momentum and second moment at 0. Layers without a mask cost nothing.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self, model: nn.Module, name: str) -> Tensor:
        """Return which weights of a layer are kept, in the weight's shape; all of them where nothing is masked.

        Raises:
            UserError: If the layer has become smaller than its mask.
        """
        weight = _weight(model, name)
        mask = self._kept.get(name)
        if mask is None:
            return torch.ones_like(weight, dtype=torch.bool)
        if mask.shape != weight.shape:
            mask = _grown(name, mask, weight)
            self._kept[name] = mask
        if mask.device != weight.device:
            mask = self._kept[name] = mask.to(weight.device)
        return mask

    def remove(self, model: nn.Module, name: str, where: Tensor, optimizer: Optimizer | None = None) -> None:
        """Remove weights for good.

        Args:
            model: The network.
            name: Qualified name of the layer.
            where: Boolean tensor of the weight's shape, True for the weights to remove.
            optimizer: Its state is zeroed at these weights.
        """
        weight = _weight(model, name)
        self._kept[name] = self.kept(model, name) & ~where
        with torch.no_grad():
            weight.masked_fill_(where, 0)
        clean_state(optimizer, weight, where, "zero")

    def apply(self, model: nn.Module) -> None:
        """Set every removed weight to 0 again."""
        BoundMasks(self, model).apply()

    def mask_gradients(self, model: nn.Module) -> None:
        """Set the gradient of every removed weight to 0."""
        BoundMasks(self, model).mask_gradients()

    def removed_fraction(self) -> float:
        """Return the share of removed weights among those of masked layers; 0 where nothing is masked."""
        total = sum(mask.numel() for mask in self._kept.values())
        kept = sum(int(mask.sum()) for mask in self._kept.values())
        return 1 - kept / total if total else 0.0

    def removed(self) -> int:
        """Return how many weights are removed."""
        return sum(int((~mask).sum()) for mask in self._kept.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the masks by layer name."""
        return {name: mask.clone() for name, mask in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over masks that `state_dict` returned."""
        self._kept = {name: mask.to(torch.bool).clone() for name, mask in state.items()}

    def disturbed(self, model: nn.Module) -> bool:
        """Return whether any removed weight is not 0, as in a model on which these masks were never applied."""
        return any(bool((~self.kept(model, name) & (_weight(model, name) != 0)).any()) for name in self._kept)

    def prune_missing(self, model: nn.Module) -> None:
        """Forget the masks of layers that the model no longer has."""
        modules = dict(unwrap(model).named_modules())
        self._kept = {name: mask for name, mask in self._kept.items() if name in modules}


class BoundMasks:
    """Masks on the weights of one model as it is now, to be kept for as long as neither changes: cheap in every step.

    Args:
        masks: The masks.
        model: The network.
    """

    def __init__(self, masks: Masks, model: nn.Module) -> None:
        weights: list[Tensor] = [_weight(model, name) for name in masks]
        self._bound = Multipliers(weights, [masks.kept(model, name) for name in masks])

    def apply(self) -> None:
        """Set every removed weight to 0 again."""
        self._bound.apply()

    def mask_gradients(self) -> None:
        """Set the gradient of every removed weight to 0."""
        self._bound.mask_gradients()


class Multipliers:
    """Tensors, and the masks by which they and their gradients are multiplied in every step.

    Masks are held as 0 and 1 in the tensors' own type: a CPU multiplies by these several times faster than by booleans.

    Args:
        tensors: The tensors.
        kept: Of each a boolean tensor of its shape, on its device.
    """

    def __init__(self, tensors: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._kept = [mask.to(tensor.dtype) for tensor, mask in zip(tensors, kept, strict=True)]

    def apply(self) -> None:
        """Set what is not kept to 0."""
        if self._tensors:
            with torch.no_grad():
                torch._foreach_mul_(self._tensors, self._kept)

    def mask_gradients(self) -> None:
        """Set its gradient to 0."""
        pairs = [(t.grad, kept) for t, kept in zip(self._tensors, self._kept, strict=True) if t.grad is not None]
        if pairs:
            with torch.no_grad():
                gradients, kept = ([pair[i] for pair in pairs] for i in (0, 1))
                torch._foreach_mul_(gradients, kept)


def _weight(model: nn.Module, name: str) -> nn.Parameter:
    weight = layer(model, name).weight
    if not isinstance(weight, nn.Parameter):
        raise UserError(f"the weight of layer '{name}' is computed from other tensors and cannot be masked")
    return weight


def _grown(name: str, mask: Tensor, weight: Tensor) -> Tensor:
    """Extend a mask for a layer that has grown; what is new is kept."""
    if mask.dim() != weight.dim() or any(new < old for new, old in zip(weight.shape, mask.shape, strict=True)):
        raise UserError(
            f"layer '{name}' has a weight of shape {tuple(weight.shape)}, but its mask has shape {tuple(mask.shape)}; "
            "masks follow layers that grow, not layers that shrink"
        )
    grown = torch.ones_like(weight, dtype=torch.bool)
    grown[tuple(slice(0, length) for length in mask.shape)] = mask.to(weight.device)
    return grown
