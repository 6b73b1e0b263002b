"""Let only chosen entries of a model's parameters learn: everything else stays as it is, bit for bit.

A zero gradient does not keep a weight still: momentum, second moments and weight decay go on moving it, batch
statistics follow the data, and the step count of its optimizer state advances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from plasticity.errors import UserError
from plasticity.groups import unwrap

_DROPOUTS: dict[Any, tuple[int, str, Any]] = {
    F.dropout: (2, "training", False),
    F.dropout1d: (2, "training", False),
    F.dropout2d: (2, "training", False),
    F.dropout3d: (2, "training", False),
    F.alpha_dropout: (2, "training", False),
    F.feature_alpha_dropout: (2, "training", False),
    torch.dropout: (2, "train", False),
    torch.dropout_: (2, "train", False),
    F.scaled_dot_product_attention: (4, "dropout_p", 0.0),
    F.multi_head_attention_forward: (10, "dropout_p", 0.0),
}
"""Functions that drop at random: position and name of the argument that decides on it, and its value for not to."""


class _WithoutDropout(TorchFunctionMode):
    """Calls dropout functions as in eval mode, wherever in a forward pass they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            position, name, value = _DROPOUTS[func]
            if len(args) > position:
                args = (*args[:position], value, *args[position + 1 :])
            else:
                kwargs = {**kwargs, name: value}
        return func(*args, **kwargs)


class PartialTraining:
    """Training of chosen entries of a model's parameters, around any training loop.

        with PartialTraining(model, optimizer, {"0.weight": rows_to_train}):
            ...  # forward passes, backward passes and optimizer.step() as always

    Inside the block, at every `optimizer.step()`:

    - A parameter without a chosen entry loses its gradient until the update is over, so that the optimizer passes it
      by: the parameter and its whole state, the step count too, stay bit-equal.
    - Of a parameter with chosen entries the optimizer is shown those alone: the others are 0, with gradient 0, and get
      back what they were. In place of each state tensor of the parameter's shape it is shown another one, of which the
      chosen entries alone are taken over. State that is born in the update is left there as the optimizer begins it.
      The step count, which PyTorch keeps once for a whole tensor, advances.

    In every forward pass of the model normalisers use their running statistics and leave them alone, and nothing is
    dropped at random, whether by a module or by a function. For that, modules without children and modules with
    running statistics of their own are in eval mode; other modules keep theirs, as some choose their head by it.

    Nothing waits for the device. State that is shared by the entries of a parameter (the factored moments of
    Adafactor) cannot be kept apart, and moves.

    Args:
        model: The network, as it is called.
        optimizer: Its optimizer; whatever else it holds is frozen, too.
        trainable: By qualified name of a parameter, a boolean tensor of its shape: True for entries that learn. All
            that is not named is frozen.

    Raises:
        UserError: If a name is unknown or a mask does not fit; from `step()`, if it is given a closure.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, trainable: Mapping[str, Tensor]) -> None:
        self.model = model
        self.optimizer = optimizer
        chosen: dict[Tensor, Tensor] = {}
        parameters = dict(unwrap(model).named_parameters(remove_duplicate=False))
        for name, mask in trainable.items():
            parameter = parameters.get(name)
            if parameter is None:
                raise UserError(f"the model has no parameter '{name}'")
            if mask.dtype != torch.bool or mask.shape != parameter.shape:
                raise UserError(
                    f"the mask of '{name}' must be boolean, of shape {tuple(parameter.shape)}, "
                    f"not {mask.dtype} of shape {tuple(mask.shape)}"
                )
            known = chosen.get(parameter)  # a tied parameter has several names
            chosen[parameter] = mask if known is None else mask | known.to(mask.device)
        self._entries = {each: _Entries(mask, each.device) for each, mask in chosen.items() if bool(mask.any())}
        self._memory: dict[tuple[Tensor, str], Tensor] = {}  # for copies, kept from one update to the next
        self._modes: list[tuple[nn.Module, str, Any, Any]] = []
        self._pending: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []  # parameters, their values, and their state
        self._hidden: list[tuple[Tensor, Tensor]] = []  # gradients that the optimizer is not to see
        self._hooks: ExitStack | None = None
        self._dropout = ExitStack()

    # --- from when to when -------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Begin: from now on only the chosen entries learn."""
        if self._hooks is not None:
            raise UserError("this partial training is already attached")
        self._hooks = stack = ExitStack()
        self._modes = [(m, name, getattr(m, name), still) for m, name, still in _stillness(self.model)]
        enter, leave = self._forward_hooks()
        stack.callback(self.model.register_forward_pre_hook(enter).remove)
        stack.callback(self.model.register_forward_hook(leave, always_call=True).remove)
        stack.callback(self.optimizer.register_step_pre_hook(self._before_step).remove)
        stack.callback(self.optimizer.register_step_post_hook(self._after_step).remove)

    def detach(self) -> None:
        """End: everything learns again, and modules are in the mode in which `attach` found them."""
        if self._hooks is None:
            return
        self._hooks.close()
        self._hooks = None
        self._dropout.close()
        self._restore()  # what an update that failed has left
        for module, name, before, _ in self._modes:
            setattr(module, name, before)
        self._modes = []

    def __enter__(self) -> PartialTraining:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    # --- forward passes ----------------------------------------------------------------------------------------

    def _forward_hooks(self) -> tuple[Callable[..., None], Callable[..., None]]:
        """Hooks on the model; they belong to no object, so that copying the model does not copy the optimizer."""

        def enter(module: nn.Module, args: Any) -> None:
            if self._hooks is not None and module is self.model:
                for each, name, _, still in self._modes:  # every time: model.train() may have come in between
                    setattr(each, name, still)
                self._dropout.close()
                self._dropout.enter_context(_WithoutDropout())

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if module is self.model:
                self._dropout.close()

        return enter, leave

    # --- updates -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if any(argument is not None for argument in (*args[1:], kwargs.get("closure"))):
            raise UserError("partial training needs optimizer.step() without a closure")
        self._restore()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                entries = self._entries.get(parameter)
                if entries is None:
                    self._hidden.append((parameter, parameter.grad))
                    parameter.grad = None
                elif not entries.all:
                    state = _entrywise_state(optimizer, parameter)
                    self._pending.append((parameter, self._copy(parameter, "", parameter), state))
                    for key, value in state.items():
                        optimizer.state[parameter][key] = self._copy(parameter, key, value, entries)
                    entries.alone(parameter.grad)
                    entries.alone(parameter)  # so that weight decay finds nothing, and new state starts clean

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._restore()

    @torch.no_grad()
    def _restore(self) -> None:
        """Give frozen entries of parameters and their state, and gradients, back what they were before the update."""
        for parameter, gradient in self._hidden:
            if parameter.grad is None:
                parameter.grad = gradient
        self._hidden = []
        for parameter, values, state in self._pending:
            entries, now = self._entries[parameter], _entrywise_state(self.optimizer, parameter)
            entries.others_from(parameter, values)
            for key in state.keys() & now.keys():
                entries.copy(now[key], state[key])
                self.optimizer.state[parameter][key] = state[key]
        self._pending = []

    def _copy(self, parameter: Tensor, key: str, value: Tensor, entries: _Entries | None = None) -> Tensor:
        """Copy what belongs to a parameter, or at least some of its entries, to where it was copied before."""
        place = self._memory.get((parameter, key))
        if place is None or place.dtype != value.dtype or place.device != value.device:
            place = self._memory[parameter, key] = value.detach().clone()
        elif entries is None:
            place.copy_(value)
        else:
            entries.copy(value, place)
        return place


class _Entries:
    """Chosen entries of tensors of one shape; most often these are whole rows, which is quicker.

    Args:
        chosen: Boolean tensor of that shape, somewhere True.
        device: Of the tensors.

    Attributes:
        all: Whether all are chosen.
    """

    def __init__(self, chosen: Tensor, device: torch.device) -> None:
        self.all = bool(chosen.all())
        self._rows: Tensor | None = None
        self._places: tuple[Tensor, ...] = ()
        if self.all:
            return
        each = chosen.flatten(1) if chosen.dim() > 1 else chosen[:, None]
        rows = each.any(1)
        if bool((rows == each.all(1)).all()):
            self._rows = rows.nonzero()[:, 0].to(device)
        else:
            self._places = tuple(each.to(device) for each in chosen.nonzero(as_tuple=True))

    def alone(self, tensor: Tensor) -> None:
        """Set all others to 0."""
        values = self._of(tensor)
        self._put(tensor.zero_(), values)

    def others_from(self, tensor: Tensor, source: Tensor) -> None:
        """Take all others from another tensor."""
        values = self._of(tensor)
        self._put(tensor.copy_(source), values)

    def copy(self, source: Tensor, tensor: Tensor) -> None:
        """Copy the chosen ones from one tensor to another."""
        self._put(tensor, self._of(source))

    def _of(self, tensor: Tensor) -> Tensor:
        return tensor[self._places] if self._rows is None else tensor.index_select(0, self._rows)

    def _put(self, tensor: Tensor, values: Tensor) -> None:
        if self._rows is None:
            tensor.index_put_(self._places, values)
        else:
            tensor.index_copy_(0, self._rows, values)


def _entrywise_state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return the optimizer state that has an entry for each entry of a parameter."""
    if parameter not in optimizer.state or parameter.dim() == 0:
        return {}
    return {
        key: value
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    }


def _stillness(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Return which attribute of which module to set to what, so that nothing is random and no statistics move."""
    settings: list[tuple[nn.Module, str, Any]] = []
    for module in unwrap(model).modules():
        if isinstance(module, nn.RNNBase):  # on a GPU it has no backward pass in eval mode
            settings.append((module, "dropout", 0.0))
        elif next(module.children(), None) is None or isinstance(getattr(module, "running_mean", None), Tensor):
            settings.append((module, "training", False))
    return settings
