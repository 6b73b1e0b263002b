"""Shrink and perturb as an Avalanche plugin."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.errors import UserError
from plasticity.exclusion import Exclude
from plasticity.methods.parameters import ALL_KINDS, LAYER_KINDS, Entry, InitialValues
from plasticity.methods.shrink_perturb import (
    PRESETS,
    ShrinkPerturbRule,
    noise_scales,
    shrink_and_perturb,
    shrink_and_perturb_step,
)
from plasticity.plugins.arguments import change_rule
from plasticity.plugins.parts import Parts
from plasticity.plugins.removed import keep_removed
from plasticity.plugins.whole_weights import WholeWeightPlugin
from plasticity.plugins.withholding import note_divergence
from plasticity.surgery.removal import Removal

_PRESET_OF = {"experience": "ash2020", "step": "kumar2023", "interpolate": "fire2026"}


class ShrinkPerturbPlugin(WholeWeightPlugin):
    """Make weights smaller and blur them: before each experience but the first, or after every update.

    Variants "experience" (Ash and Adams), "step" and "interpolate" are different algorithms of one name;
    `plasticity.methods.shrink_perturb` says what they do and where they come from. The first and the last change every
    trainable parameter, "step" only weights and biases of layers.

    Args:
        variant: "experience", "step" or "interpolate".
        preset: "ash2020", "kumar2023" or "fire2026"; None: the variant's own.
        probe_samples: On how many training samples it is seen how far the outputs move, at most.
        seed: Seed of the plugin's own random generator.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: Replace single values of the preset: `shrink`, `perturb`, `decay`, `noise`, `scale`, `strength`,
            `optimizer_state`, `step_every`; see `plasticity.methods.shrink_perturb.ShrinkPerturbRule`.

    Attributes:
        initial: The initial values by qualified name of the parameter.
        history: For every treatment how far weights and outputs moved; with "step", how many steps an experience had.

    Raises:
        UserError: If an argument is unknown or has no meaning.

    Source: Ash and Adams 2020, arXiv 1910.08475.
    """

    method = "shrink-perturb"

    def __init__(
        self,
        variant: str = "experience",
        *,
        preset: str | None = None,
        probe_samples: int = 2048,
        seed: int = 0,
        exclude: Exclude = None,
        dry_run: bool = False,
        **rule: Any,
    ) -> None:
        if not isinstance(variant, str):
            raise UserError(f"variant must be one of {', '.join(_PRESET_OF)}, not {variant!r}")
        if preset is not None and not isinstance(preset, str):
            raise UserError(f"preset must be a name, not {preset!r}")
        if preset is None and variant in _PRESET_OF:
            preset = _PRESET_OF[variant]
        chosen = PRESETS.get(preset or "", ShrinkPerturbRule())
        if preset is not None and (preset not in PRESETS or chosen.variant != variant):
            fitting = ", ".join(name for name, one in PRESETS.items() if one.variant == variant)
            raise UserError(f"unknown preset {preset!r} for variant {variant!r}; there are: {fitting or 'none'}")
        chosen = replace(chosen, variant=variant)  # type: ignore[arg-type]  # checked by the rule
        self.rule = change_rule(self, chosen, rule, hidden=("variant",))
        super().__init__(
            optimizer_state=self.rule.optimizer_state,
            probe_samples=probe_samples,
            seed=seed,
            exclude=exclude,
            dry_run=dry_run,
        )
        if variant != "experience":
            self.method = f"shrink-perturb-{variant}"
        self.initial = InitialValues(LAYER_KINDS if variant == "step" else ALL_KINDS)
        self._entries: list[Entry] = []
        self._scales: list[Tensor] = []
        self._steps = 0
        self._parts = Parts()
        self._noise: torch.Generator | None = None
        self._noise_state: tuple[str, Tensor] | None = None
        self._seed = seed

    @property
    def idle(self) -> bool:
        """Whether nothing changes between experiences."""
        return self.rule.idle or self.rule.variant == "step"

    def change(self, model: nn.Module, generator: torch.Generator) -> Sequence[Entry]:
        """Shrink and perturb once."""
        spared = self.excluded.tensors(model)
        return shrink_and_perturb(model, self._entries, self.initial, self.rule, generator, spared)

    def take_hold(self, model: nn.Module) -> None:
        """Look up the parameters, and keep the initial values of what is new."""
        self._entries = self.initial.update(model, self.excluded.tensors(model))

    # --- Avalanche's callbacks ---------------------------------------------------------------------------------

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the initial values of what is new, and treat between experiences."""
        if not self.rule.idle:
            self.take_hold(strategy.model)
        super().before_training_exp(strategy, *args, **kwargs)
        if self.rule.variant == "step" and not self.rule.idle:
            self._scales = noise_scales(self._entries, self.initial, self.rule)
            self._noise = self._generator_for(strategy.device)

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Shrink and perturb at this step, with "step"."""
        if self.rule.variant == "step" and not self.rule.idle:
            self._steps += 1
            if self.dry_run or self._steps % self.rule.step_every:
                return
            parameters = [entry.parameter for entry in self._entries]
            shrink_and_perturb_step(parameters, self._scales, self.rule, self._noise)
            keep_removed(strategy)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Report on "step", and let go of the parameters, which may be replaced."""
        if self._parts.complete(strategy.experience) and self._steps:
            experience = int(strategy.experience.current_experience)
            told = {**({"dry_run": True} if self.dry_run else {}), **note_divergence(self, strategy)}
            self.report({"experience": experience, "method": self.method, "steps": self._steps, **told})
            self._steps = 0
        self._keep_noise_state()
        self._entries, self._scales, self._noise = [], [], None

    def follow_removal(self, strategy: Any, removal: Removal) -> None:
        """Go along with units that another plugin has removed physically."""
        self.initial.follow(removal)

    def follow_renewal(self, strategy: Any, names: Collection[str]) -> None:
        """Go along with parameters that another plugin has drawn anew."""
        self.initial.renew(strategy.model, names)

    # --- state -------------------------------------------------------------------------------------------------

    def _generator_for(self, device: torch.device) -> torch.Generator | None:
        if device.type == "meta":
            return None
        generator = torch.Generator(device).manual_seed(self._seed)
        if self._noise_state is not None and self._noise_state[0] == device.type:
            generator.set_state(self._noise_state[1])
        return generator

    def _keep_noise_state(self) -> None:
        if self._noise is not None:
            self._noise_state = (self._noise.device.type, self._noise.get_state())

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, the initial values among it."""
        self._keep_noise_state()
        noise = None if self._noise_state is None else [self._noise_state[0], self._noise_state[1].clone()]
        return {
            **super().state_dict(),
            "initial": self.initial.state_dict(),
            "noise": noise,
            "steps": self._steps,
            "parts": self._parts.seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self.initial.load_state_dict(state["initial"])
        noise = state["noise"]
        self._noise_state = None if noise is None else (str(noise[0]), noise[1].clone())
        if self._noise is not None:  # in the middle of an experience
            self._noise = self._generator_for(self._noise.device)
        self._steps, self._parts.seen = int(state["steps"]), int(state["parts"])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_entries": [], "_scales": [], "_noise": None}
