"""Measures of a model's parameters: magnitude, distance from initialisation, gradient."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from plasticity.errors import UserError
from plasticity.measures.scalars import stack, working_type

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def weight_magnitude(model: nn.Module) -> Tensor:
    """Return the mean |w| over all weights of linear, convolution and attention layers, each weight counted equally.

    Counted are the weights of Linear, Conv1d-3d and ConvTranspose1d-3d, and MultiheadAttention's input projections,
    frozen ones and heads included; one that several layers share counts once; where a weight is parametrised or
    masked, the one it computes with. Not counted: biases, normalisations, embeddings, recurrent layers.

    Args:
        model: The network.

    Returns:
        0-dim, in the unit of the weights.

    Raises:
        UserError: If the model has no such weight, or a lazy one that no forward pass has given a shape.

    Source: Dohare et al. 2024, Nature 632.
    """
    sums = list(_absolute_sums(model).values())
    if not sums:
        raise UserError(f"{type(model).__name__} has no linear or convolution layer whose weights could be measured")
    return stack(total for total, _ in sums).sum() / sum(count for _, count in sums)


def weight_magnitude_by_layer(model: nn.Module) -> dict[str, Tensor]:
    """Return `weight_magnitude` of each layer that has such weights.

    Args:
        model: The network.

    Returns:
        0-dim each, by the qualified name of the layer ("" is the model itself); a weight that several layers share is
        under the first. Empty where there is none.

    Raises:
        UserError: If a weight is lazy and no forward pass has given it a shape.

    Source: Dohare et al. 2024, Nature 632.
    """
    return {name: total / count for name, (total, count) in _absolute_sums(model).items()}


def distance_from_initialisation(model: nn.Module, initial: Mapping[str, Tensor]) -> Tensor:
    """Return ||W - W0||_2 over all parameters taken as one vector, biases and normalisations included.

    Parameters that appeared since, or grew to another shape, are left out: they have no initial value.

    Args:
        model: The network.
        initial: Initial values by qualified parameter name, each of its parameter's shape, such as a cloned
            state_dict; on another device they are copied at each call.

    Returns:
        0-dim, in the unit of the parameters.

    Raises:
        UserError: If no parameter is in `initial`, or it holds the live parameters, which move with the model.

    Source: Kumar et al. 2023, arXiv 2308.11958 (the penalty of L2 Init is its square).
    """
    distances = distance_by_layer(model, initial)
    if not distances:
        raise UserError(f"no parameter of {type(model).__name__} is in the initial values with the same shape")
    return _norm(stack(distances.values()), 2)


def distance_by_layer(model: nn.Module, initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `distance_from_initialisation` of each layer, over its own parameters.

    Args:
        model: The network.
        initial: Initial values by qualified parameter name, each of its parameter's shape.

    Returns:
        0-dim each, by the qualified name of the layer ("" is the model itself); layers without an initial value are
        left out.

    Raises:
        UserError: If `initial` holds the live parameters, which move with the model.

    Source: Kumar et al. 2023, arXiv 2308.11958.
    """
    norms: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        before = initial.get(name)
        if before is None or is_lazy(parameter) or before.shape != parameter.shape:
            continue
        if before.data_ptr() == parameter.data_ptr() != 0:
            raise UserError(f"the initial value of {name} is the live parameter itself: clone it when the run begins")
        now = parameter.detach()
        now = now.to(torch.promote_types(now.dtype, working_type(now.device)))
        norms[_layer(name)].append(_norm(now - before.detach().to(now), 2))
    return {name: _norm(stack(each), 2) for name, each in norms.items()}


def gradient_norm(model: nn.Module) -> Tensor:
    """Return the L2 norm of the gradients that the parameters hold now, taken as one vector.

    They are taken as they stand: accumulated, clipped or not, and times a gradient scaler's scale until unscaled.

    Args:
        model: The network.

    Returns:
        0-dim, in the unit of the loss over that of the parameters; 0 where there are no gradients.

    Source: none; it is the plain Euclidean norm.
    """
    norms = gradient_norm_by_layer(model).values()
    return _norm(stack(norms), 2) if norms else torch.zeros((), dtype=torch.float64)


def gradient_norm_by_layer(model: nn.Module) -> dict[str, Tensor]:
    """Return `gradient_norm` of each layer with parameters of its own.

    Args:
        model: The network.

    Returns:
        0-dim each, by the qualified name of the layer ("" is the model itself); 0 where it has no gradient.

    Source: none; it is the plain Euclidean norm.
    """
    norms: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        nothing = torch.zeros((), dtype=working_type(parameter.device), device=parameter.device)
        norms[_layer(name)].append(nothing if parameter.grad is None else _norm(parameter.grad, 2))
    return {name: _norm(stack(each), 2) for name, each in norms.items()}


def _absolute_sums(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    weights: dict[str, list[Tensor]] = defaultdict(list)
    for name, weight in _weights(model):
        weights[name].append(weight)
    return {
        name: (stack(_norm(each, 1) for each in own).sum(), sum(each.numel() for each in own))
        for name, own in weights.items()
    }


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen: list[Tensor] = []
    for name, module in model.named_modules():
        names = ("weight",) if isinstance(module, (nn.Linear, *_CONVOLUTIONS)) else ()
        for attribute in _ATTENTION_WEIGHTS if isinstance(module, nn.MultiheadAttention) else names:
            if is_parametrized(module, attribute):
                # Reading the attribute could move the state of, say, a power iteration; a copy in eval mode does not.
                weight = copy.deepcopy(module.parametrizations[attribute]).eval()()
            else:
                weight = getattr(module, attribute)
            if weight is None or any(weight is other for other in seen):
                continue
            if is_lazy(weight):
                raise UserError(f"layer {name or type(module).__name__} has no weights yet: run the model once")
            seen.append(weight)
            if weight.numel() > 0:
                yield name, weight


def _norm(tensor: Tensor, order: int) -> Tensor:
    values = tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach()
    values = values.abs() if values.is_complex() else values
    norm: Tensor = torch.linalg.vector_norm(values, order, dtype=working_type(values.device))
    return norm


def _layer(parameter: str) -> str:
    path = f".{parameter}"
    owner = path.partition(".parametrizations.")[0] if ".parametrizations." in path else path.rpartition(".")[0]
    return owner[1:]
