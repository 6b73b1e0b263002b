"""Write a network as a plain checkpoint, which loads without this library."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from plasticity.architecture.crelu import CReLU
from plasticity.architecture.injected import Injection
from plasticity.architecture.merging import merge
from plasticity.architecture.rewriting import Example
from plasticity.errors import UserError
from plasticity.methods.demon_masks import kept_at_zero
from plasticity.preview import twins

_WIDTHS = ("in_features", "out_features", "in_channels", "out_channels", "num_features", "num_channels", "groups")


def export(model: nn.Module, plugins: Iterable[object] = (), *, example: Example | None = None) -> dict[str, Any]:
    """Return a network as tensors and plain values, for `torch.save`.

        torch.save(plasticity.export(strategy.model, strategy.plugins), "network.pt")

        saved = torch.load("network.pt", weights_only=True)  # here nothing of this library is needed
        network.load_state_dict(saved["state_dict"])

    What plugins have removed is 0 in it. What this library has built into the network is merged: units of CReLU become
    two of ReLU each, and a head that plasticity was injected into becomes one head, see
    `plasticity.architecture.merging.merge`.

    Args:
        model: The network, between two experiences. It stays as it is.
        plugins: Those of the strategy; of this library's the masks count.
        example: An input, or a tuple of the model's positional inputs, with samples of every task that has a head. It
            is needed where something is to be merged: outputs for it stay equal.

    Returns:
        "state_dict": the parameters and buffers by name, on the CPU. "widths": by name of a layer or normaliser, its
        sizes as arguments of its class, such as `{"in_features": 64, "out_features": 10}`: where units were removed,
        heads have grown, or something was merged, a network is to be built with these.

    Raises:
        UserError: If the network cannot be copied or has no shapes yet, something cannot be merged, or there is no
            example to merge by.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UserError(f"parameter '{name}' has no shape yet, and cannot be exported")
    network, _ = twins(model, None)
    for removed in copy.deepcopy(kept_at_zero(plugins)):
        removed.prune_missing(network)
        removed.apply(network)
    if any(isinstance(module, CReLU | Injection) for module in network.modules()):
        if example is None:
            raise UserError(
                "this library has built CReLU or a second head into the network; to write it as a plain one, export "
                "needs an input of it: export(model, plugins, example=x)"
            )
        merge(network, example)
    for name, module in network.named_modules():
        if type(module).__module__.partition(".")[0] == "plasticity":
            raise UserError(f"'{name}' is a {type(module).__name__} of this library, and has no plain counterpart")
    return {
        "state_dict": {name: _plain(value) for name, value in network.state_dict().items()},
        "widths": {name: found for name, module in network.named_modules() if (found := _widths(module))},
    }


def _plain(value: Any) -> Any:
    return value.detach().cpu().clone().contiguous() if isinstance(value, Tensor) else value


def _widths(module: nn.Module) -> dict[str, int]:
    own = vars(module)
    return {key: own[key] for key in _WIDTHS if isinstance(own.get(key), int)}
