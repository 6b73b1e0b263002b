"""The reference that has lost nothing: a new network for every experience."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.utils import _at_task_boundary
from torch import nn

from plasticity.errors import UserError
from plasticity.plugins.base import TreatmentPlugin
from plasticity.plugins.beside import acts_of
from plasticity.plugins.steps import StepPlugin


class FreshNetworkPlugin(SupervisedPlugin[Any]):
    """Gives the model new random weights and the optimizer an empty state before each experience but the first.

    An online stream, of which an experience comes a few samples at a time, has to tell where they begin.

    Parameters are overwritten in place, so that whatever holds them goes on to work. A head that has grown, or that
    belongs to a task the new network does not know of, draws its weights by `reset_parameters`.

    Methods of this library that come later in the list begin anew with each network: they know no more of the one
    before than that network does, and only their history goes on. So in every experience they do what they do in the
    first one. What others keep, such as samples to replay, stays.

    Args:
        network: Makes another network like the model at the start.
    """

    def __init__(self, network: Callable[[], nn.Module]):
        super().__init__()
        self.network = network
        self.experiences = 0
        self._begun: list[dict[str, Any]] = []  # the states in which the methods have begun

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse methods that could not begin anew.

        Raises:
            UserError: If there is one.
        """
        behind = _methods_behind(self, strategy)
        for other in strategy.plugins:
            if isinstance(other, TreatmentPlugin | StepPlugin):
                name = type(other).__name__
                if other not in behind:
                    raise UserError(
                        f"{name} would treat the network that `fresh` is about to throw away: name fresh first, "
                        f"as in fresh+{other.method}"
                    )
                if acts_of(other) & {"shrinks", "rebuilds"}:
                    raise UserError(
                        f"fresh cannot go with {name}, which changes of what parameters the network is made: "
                        "a new network would not fit into its place"
                    )

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Start anew, once the head has been adapted to the experience."""
        if not _at_task_boundary(strategy.experience):
            return
        methods = _methods_behind(self, strategy)
        self.experiences += 1
        if self.experiences == 1:
            self._begun = [copy.deepcopy(method.state_dict()) for method in methods]
            return
        renew(strategy.model, self.network())
        strategy.optimizer.state.clear()
        for method, begun in zip(methods, self._begun, strict=True):
            now = method.state_dict()
            method.load_state_dict({**copy.deepcopy(begun), **{key: now[key] for key in ("history", "reported")}})

    def state_dict(self) -> dict[str, Any]:
        """Return the number of experiences so far, and the states in which the methods behind have begun."""
        return {"experiences": self.experiences, "begun": copy.deepcopy(self._begun)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.experiences, self._begun = int(state["experiences"]), copy.deepcopy(list(state["begun"]))


def _methods_behind(plugin: FreshNetworkPlugin, strategy: Any) -> list[TreatmentPlugin | StepPlugin]:
    plugins = list(strategy.plugins)
    later = plugins[plugins.index(plugin) + 1 :]
    return [other for other in later if isinstance(other, TreatmentPlugin | StepPlugin)]


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
