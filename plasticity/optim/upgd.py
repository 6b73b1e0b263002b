"""Utility-based perturbed gradient descent: useful weights are protected, the others are perturbed."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from plasticity.errors import UserError
from plasticity.values import check_seed, in_range

Utility = Literal["global", "local"]
Preset = Literal["elsayed2024", "elsayed2024-readme"]


class _Ready(NamedTuple):
    """The parameters of a group that take part in a step."""

    group: dict[str, Any]
    parameters: list[Tensor]
    gradients: list[Tensor]
    averages: list[Tensor]
    utilities: list[Tensor]  # the averages, corrected for their youth


class UPGD(Optimizer):
    r"""Gradient descent whose steps and noise are gated by the utility of every weight.

    A weight's utility is how much the loss would rise without it, to first order: \(-g w\), averaged over steps. With
    \(\hat u\) that average, corrected for its youth as Adam's moments are,

        gate = sigmoid(utility / scale)
        w <- (1 - lr * weight_decay) * w - lr * (g + noise) * (1 - gate)

    The scale is the largest utility of all weights (`utility="global"`), or the length of the utilities of the weights
    that enter the same unit ("local"). Where no weight has a utility above 0 nothing is protected: weights of negative
    utility learn freely, and those of utility 0 at half the rate.

    Only weights with a gradient take part in a step. State is made when a weight first has one, so parameters may join
    a group at any time, as Avalanche adds those of a growing head. Averages are kept in float32 at least. Nothing
    waits for the device.

    Args:
        params: Parameters or groups; a group may have its own value of every argument but `seed`.
        lr: Step size. Steps are those of plain gradient descent, so rates that suit Adam are too small.
        beta: Decay of the average utility, in [0, 1).
        sigma: Standard deviation of the noise that is added to gradients; 0 draws none.
        weight_decay: Decoupled from the gradient and not gated.
        utility: "global" or "local".
        protect: False: the gate acts on the noise alone, and the gradient step is that of plain gradient descent.
        preset: "elsayed2024", the authors' code: the largest utility is taken before the correction for youth, which
            closes gates of useful weights in the first steps, and may be negative, which turns protection around;
            "local" scales along the last dimension, which in a convolution is one row of a kernel.
            "elsayed2024-readme": likewise with steps twice as large, as in the listing that accompanies the code.
        seed: Seed of the optimizer's own random generator, which `state_dict` saves.

    Raises:
        UserError: If an argument has no meaning; from `step`, if a parameter is complex or a gradient sparse.

    Source: Elsayed and Mahmood, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning",
    ICLR 2024.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        *,
        beta: float = 0.999,
        sigma: float = 1e-3,
        weight_decay: float = 0.0,
        utility: Utility = "global",
        protect: bool = True,
        preset: Preset | None = None,
        seed: int = 0,
    ) -> None:
        self._seed = check_seed(seed)
        self._generators: dict[str, torch.Generator] = {}
        settings = {
            "lr": lr,
            "beta": beta,
            "sigma": sigma,
            "weight_decay": weight_decay,
            "utility": utility,
            "protect": protect,
            "preset": preset,
        }
        super().__init__(params, settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Args:
            param_group: "params" and the settings of its own.

        Raises:
            UserError: If a setting has no meaning.
        """
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except UserError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Computes the loss and its gradients anew; None: gradients are there.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None and p.numel() > 0]
            if parameters:
                ready.append(self._utilities(group, parameters))
        largest = _largest(ready)
        for each in ready:
            self._update(each, _free(each, largest))
        return loss

    def _utilities(self, group: dict[str, Any], parameters: list[Tensor]) -> _Ready:
        """Advance the average utilities."""
        averages, youth = [], []
        for parameter in parameters:
            state = self.state[parameter]
            wide = _wide(parameter)
            if "utility" not in state:
                state["step"] = 0
                state["utility"] = torch.zeros_like(parameter, dtype=wide, memory_format=torch.preserve_format)
            elif state["utility"].dtype != wide:  # a loaded state has the parameter's own
                state["utility"] = state["utility"].to(wide)
            state["step"] += 1
            averages.append(state["utility"])
            youth.append(1 - group["beta"] ** state["step"])
        gradients = _gradients(parameters)
        weights = [parameter.detach().to(each.dtype) for parameter, each in zip(parameters, gradients, strict=True)]
        torch._foreach_mul_(averages, group["beta"])
        torch._foreach_addcmul_(averages, weights, gradients, value=group["beta"] - 1)
        return _Ready(group, parameters, gradients, averages, list(torch._foreach_div(averages, youth)))

    def _update(self, ready: _Ready, free: list[Tensor]) -> None:
        """Take the step; `free` says by how much each weight is free to move, and is used up."""
        group, gradients = ready.group, ready.gradients
        if group["sigma"] > 0:
            noise = [self._noise(gradient, group["sigma"]) for gradient in gradients]
            if group["protect"]:
                torch._foreach_add_(noise, gradients)
                torch._foreach_mul_(noise, free)
                change = noise
            else:
                change = list(torch._foreach_addcmul(gradients, noise, free))
        elif group["protect"]:
            torch._foreach_mul_(free, gradients)
            change = free
        else:
            change = gradients
        if group["weight_decay"] != 0:
            torch._foreach_mul_(ready.parameters, 1 - group["lr"] * group["weight_decay"])
        factor = 2.0 if group["preset"] == "elsayed2024-readme" else 1.0
        torch._foreach_add_(ready.parameters, change, alpha=-factor * group["lr"])

    def _noise(self, like: Tensor, sigma: float) -> Tensor:
        generator = None
        if like.device.type != "meta":
            key = str(like.device)
            if key not in self._generators:
                self._generators[key] = torch.Generator(like.device).manual_seed(self._seed)
            generator = self._generators[key]
        return torch.empty_like(like).normal_(0, sigma, generator=generator)

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state as any optimizer does, and that of the random generators, by device."""
        return {**super().state_dict(), "generators": self._generator_states(), "seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Args:
            state_dict: As `state_dict` returned it; on another kind of device the noise begins anew.
        """
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self._seed = int(state_dict["seed"])
        self._set_generators(state_dict["generators"])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "generators": self._generator_states(), "seed": self._seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "generators" in state:  # not when called by load_state_dict
            self._seed = state.pop("seed")
            self._set_generators(state.pop("generators"))
        super().__setstate__(state)

    def _generator_states(self) -> dict[str, Tensor]:
        return {device: generator.get_state() for device, generator in self._generators.items()}

    def _set_generators(self, states: dict[str, Tensor]) -> None:
        self._generators = {}
        for device, state in states.items():
            if torch.device(device).type == "cpu" or torch.cuda.is_available():
                self._generators[device] = torch.Generator(device)
                self._generators[device].set_state(state.cpu())


def _check(group: dict[str, Any]) -> None:
    for name in ("lr", "beta", "sigma", "weight_decay"):
        in_range(f"UPGD: {name}", group[name])
    for name, good, words in (
        ("beta", group["beta"] < 1, "in [0, 1)"),
        ("utility", group["utility"] in get_args(Utility), " or ".join(get_args(Utility))),
        ("preset", group["preset"] in (None, *get_args(Preset)), f"None, {' or '.join(get_args(Preset))}"),
    ):
        if not good:
            raise UserError(f"UPGD: {name} must be {words}, not {group[name]!r}")


def _wide(parameter: Tensor) -> torch.dtype:
    """Return the precision of averages: in half precision they would stop moving."""
    return torch.promote_types(parameter.dtype, torch.float32)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    found = []
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.layout != torch.strided or parameter.is_complex():
            raise UserError("UPGD needs real parameters with dense gradients")
        found.append(gradient.to(_wide(parameter)))
    return found


def _largest(ready: list[_Ready]) -> Tensor | None:
    """Return the largest utility over all weights that share one, or None where none do."""
    maxima = [
        values.amax()
        for each in ready
        if each.group["utility"] == "global"
        for values in (each.utilities if each.group["preset"] is None else each.averages)
    ]
    if not maxima:
        return None
    return reduce(torch.maximum, [value.to(maxima[0].device) for value in maxima])


def _free(ready: _Ready, largest: Tensor | None) -> list[Tensor]:
    """Return by how much each weight is free to move, from 0 to 1, in place of the utilities."""
    group, utilities = ready.group, ready.utilities
    if group["utility"] == "global":
        assert largest is not None
        scales: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        for key in {(utility.device, utility.dtype) for utility in utilities}:
            scale = largest.to(key[0])
            scales[key] = -(scale if group["preset"] else scale.clamp(min=torch.finfo(key[1]).tiny))
        torch._foreach_div_(utilities, [scales[utility.device, utility.dtype] for utility in utilities])
    else:
        utilities = [-_along_units(utility, bool(group["preset"])) for utility in utilities]
    torch._foreach_sigmoid_(utilities)
    return utilities


def _along_units(utility: Tensor, last: bool) -> Tensor:
    """Return utilities over their length: of the weights that enter a unit, or along the last dimension."""
    if last or utility.dim() < 2:
        return F.normalize(utility, dim=-1) if utility.dim() else F.normalize(utility, dim=0)
    return F.normalize(utility.flatten(1), dim=1).view_as(utility)
