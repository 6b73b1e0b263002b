"""The reference that has lost nothing: a new network for every experience."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.utils import _at_task_boundary
from torch import nn

from plasticity.errors import UserError


class FreshNetworkPlugin(SupervisedPlugin[Any]):
    """Gives the model new random weights and the optimizer an empty state before each experience but the first.

    An online stream, of which an experience comes a few samples at a time, has to tell where they begin.

    Parameters are overwritten in place, so that whatever holds them goes on to work. A head that has grown, or that
    belongs to a task the new network does not know of, draws its weights by `reset_parameters`.

    Args:
        network: Makes another network like the model at the start.
    """

    def __init__(self, network: Callable[[], nn.Module]):
        super().__init__()
        self.network = network
        self.experiences = 0

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Start anew, once the head has been adapted to the experience."""
        if not _at_task_boundary(strategy.experience):
            return
        self.experiences += 1
        if self.experiences > 1:
            renew(strategy.model, self.network())
            strategy.optimizer.state.clear()

    def state_dict(self) -> dict[str, int]:
        """Return the number of experiences so far."""
        return {"experiences": self.experiences}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over what `state_dict` returned."""
        self.experiences = int(state["experiences"])


@torch.no_grad()
def renew(model: nn.Module, network: nn.Module) -> None:
    """Overwrite a network with another of the same kind.

    Args:
        model: The network to overwrite; it may have grown.
        network: The new one.

    Raises:
        UserError: If a part of the model has no counterpart in the new network and no `reset_parameters`.
    """
    new = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        fitting = [(new.get(f"{name}.{key}" if name else key), tensor) for key, tensor in own]
        if all(source is not None and source.shape == tensor.shape for source, tensor in fitting):
            for source, tensor in fitting:
                tensor.copy_(source)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif list(module.parameters(recurse=False)):
            raise UserError(f"fresh: module '{name}' ({type(module).__name__}) has grown and cannot be started anew")
