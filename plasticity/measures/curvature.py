"""Curvature of the loss: the Hessian's largest eigenvalue, and how different the samples' gradients are.

It takes curvlinops, which multiplies with such matrices without ever holding them:

    pip install "avalanche-plasticity[curvature]"

The network is looked at in eval mode, without dropout and with the running statistics of its normalisers, and is left
as it was. Only parameters that require a gradient count.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.errors import UserError
from plasticity.measures.ranks import effective_rank
from plasticity.measures.scalars import working_type


class NotConvergedError(UserError):
    """The largest eigenvalue was not found."""


Batch = tuple[Any, Tensor]
"""Inputs of the network, one tensor or a tuple of positional ones, and the targets of the loss."""


def available() -> None:
    """See that curvlinops is installed.

    Raises:
        UserError: If not.
    """
    _curvlinops()


def largest_hessian_eigenvalue(
    model: nn.Module, loss: nn.Module, batches: Sequence[Batch], *, tolerance: float = 1e-3, seed: int = 0
) -> Tensor:
    """Return the largest eigenvalue of the Hessian of the loss by the network's parameters.

    The sharpest direction upwards, not the largest magnitude. By Lanczos iterations (ARPACK's), each of which takes a
    forward and two backward passes over the samples. The second derivative of ReLU counts as 0 everywhere.

    Args:
        model: The network.
        loss: A loss of `torch.nn` with `reduction` "mean" or "sum", without class weights.
        batches: The samples.
        tolerance: Relative accuracy of the eigenvalue.
        seed: Of the vector with which the iterations begin.

    Returns:
        0-dim, on the device of the network; NaN where the loss is not finite.

    Raises:
        UserError: If curvlinops is missing, the loss is another, there are no parameters or samples, curvlinops cannot
            follow the network; NotConvergedError, which is one, if the iterations do not come to an end.

    Source: Lewandowski et al. 2023, arXiv 2312.00246, on curvature and plasticity; Dangel et al. 2025, arXiv
    2501.19183, on curvlinops.
    """
    curvlinops = _curvlinops()
    _check_loss(loss, ("mean", "sum"))
    with _looking(model) as parameters:
        data = _mappings(batches)
        if not _finite(model, loss, data):
            return _number(float("nan"), parameters[0])
        operator = curvlinops.HessianLinearOperator(_Positional(model), loss, parameters, data, batch_size_fn=_size)
        return _number(_largest(operator, parameters, tolerance, seed), parameters[0])


def gradient_effective_rank(
    model: nn.Module, loss: nn.Module, batches: Sequence[Batch], *, columns: int = 32
) -> Tensor:
    """Return the effective rank of the Gram matrix of the samples' gradients.

    Entry (i, j) is the inner product of the gradients of the losses of samples i and j. Near 1, all samples pull the
    network in one direction, whatever they are; a network that can still fit anything keeps them apart.

    Args:
        model: The network.
        loss: A loss of `torch.nn` whose `reduction` can be "none", without class weights.
        batches: The samples; 128 to 512 are usual.
        columns: Of how many samples gradients are held at a time, which takes as many times the memory of the network.

    Returns:
        0-dim, on the device of the network: the `effective_rank` of the matrix, between 1 and the number of samples; 0
        where all gradients are 0, NaN where one is not finite.

    Raises:
        UserError: If curvlinops is missing, the loss is another, there are no parameters or samples, or curvlinops
            cannot follow the network.

    Source: Lyle et al. 2024, arXiv 2402.18762, on the neural tangent kernel's rank; Dangel et al. 2025, arXiv
    2501.19183, on curvlinops.
    """
    curvlinops = _curvlinops()
    if columns < 1:
        raise UserError(f"columns must be at least 1, not {columns}")
    _check_loss(loss, ("mean", "sum", "none"))
    with _looking(model) as parameters:
        data = _mappings(batches)
        if not _finite(model, _without_reduction(loss), data):
            return _number(float("nan"), parameters[0])
        losses = curvlinops.JacobianLinearOperator(
            _Losses(model, _without_reduction(loss)), parameters, data, batch_size_fn=_size
        )
        transposed = losses.adjoint()
        samples = sum(_size(mapping) for mapping, _ in data)
        identity = torch.eye(samples, dtype=parameters[0].dtype, device=parameters[0].device)
        gram = torch.cat([losses @ (transposed @ part) for part in identity.split(columns, dim=1)], dim=1)
    return effective_rank(gram)


# --- what curvlinops is given ---------------------------------------------------------------------------------------


class _Positional(nn.Module):
    """A network that takes its inputs out of a mapping, so that there may be several."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Any]) -> Tensor:
        output: Tensor = self.model(*batch["inputs"])
        return output


class _Losses(_Positional):
    """A network whose output is the loss of each sample, (samples, 1)."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__(model)
        self.loss = loss

    def forward(self, batch: dict[str, Any]) -> Tensor:
        losses: Tensor = self.loss(super().forward(batch), batch["targets"])
        return losses.reshape(len(batch["targets"]), -1).mean(1, keepdim=True)


def _mappings(batches: Sequence[Batch]) -> list[tuple[dict[str, Any], Tensor]]:
    found = []
    for inputs, targets in batches:
        if len(targets):
            positional = inputs if isinstance(inputs, tuple) else (inputs,)
            found.append(({"inputs": positional, "targets": targets}, targets))
    if not found:
        raise UserError("curvature needs samples, and there are none")
    return found


def _size(mapping: dict[str, Any]) -> int:
    return len(mapping["inputs"][0])


def _curvlinops() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch.jit, in what it imports
            import curvlinops
    except ImportError as error:
        raise UserError(
            f'curvature is measured by curvlinops: pip install "avalanche-plasticity[curvature]" ({error})'
        ) from None
    return curvlinops


def _check_loss(loss: nn.Module, reductions: tuple[str, ...]) -> None:
    reduction = getattr(loss, "reduction", None)
    if reduction not in reductions:
        raise UserError(f"the loss must be one of torch.nn with a reduction ({', '.join(reductions)}), not {loss!r}")
    if getattr(loss, "weight", None) is not None:
        raise UserError("the loss must not weigh classes: its mean would not be one over samples")


def _without_reduction(loss: nn.Module) -> nn.Module:
    single = copy(loss)
    setattr(single, "reduction", "none")  # noqa: B010  # a plain attribute of every loss of torch.nn
    return single


@contextmanager
def _looking(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Put a model into eval mode and give its trainable parameters; tell in words what curvlinops cannot do."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError(f"{type(model).__name__} has no parameters to train, and so no curvature")
    modes = [(module, module.training) for module in model.modules()]
    devices = {parameter.device for parameter in parameters if parameter.device.type == "cuda"}
    try:
        model.eval()
        with torch.random.fork_rng(devices=list(devices)):  # curvlinops draws vectors to check itself
            yield parameters
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"curvlinops cannot follow {type(model).__name__}: {reason}") from error
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def _finite(model: nn.Module, loss: nn.Module, data: Sequence[tuple[dict[str, Any], Tensor]]) -> bool:
    losses = [loss(model(*mapping["inputs"]), targets) for mapping, targets in data]
    return all(bool(torch.isfinite(each).all()) for each in losses)


def _largest(operator: Any, parameters: Sequence[Tensor], tolerance: float, seed: int) -> float:
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh  # comes with curvlinops

    size = sum(parameter.numel() for parameter in parameters)
    if size <= 2:  # ARPACK needs more
        dense = operator @ torch.eye(size, dtype=parameters[0].dtype, device=parameters[0].device)
        return float(torch.linalg.eigvalsh(dense.double().cpu()).max())
    hessian = operator.to_scipy()
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    start = start.astype(hessian.dtype)
    if not (hessian @ start).any():  # the Hessian is 0, and ARPACK would complain
        return 0.0
    try:
        values = eigsh(hessian, k=1, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        raise NotConvergedError(f"the largest eigenvalue was not found ({error}); raise the tolerance") from None
    return float(values[0])


def _number(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=working_type(like.device), device=like.device)
