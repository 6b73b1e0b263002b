"""Treatment where it is needed, as an Avalanche plugin."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from avalanche.training.utils import _at_task_boundary
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.distributed import add_up, group_of
from plasticity.exclusion import Exclude
from plasticity.groups import UnitGroup, UnitGroups
from plasticity.methods.adaptive import STRONGEST, AdaptiveRule, LearningRecord, treat_as_needed
from plasticity.methods.parameters import Entry, InitialValues
from plasticity.methods.treatment import Treatment
from plasticity.plugins.arguments import change_rule
from plasticity.plugins.base import Every
from plasticity.plugins.recycling import RecyclingPlugin
from plasticity.preview import Preview
from plasticity.probe import Probe


class AdaptivePlugin(RecyclingPlugin):
    """Look at units and at how well experiences are learned, and treat only where it is needed, mildest first.

    Before each experience but the first: dead units are made new in layers that have many; if learning has fallen
    behind, dormant units are; if that has not helped, or if weights have grown long, all weights go part of the way
    back to their initial values and the optimizer begins anew.
    `plasticity.methods.adaptive` says how that is judged. The learning record needs integer labels and outputs
    (samples, classes); without them dead units alone are judged.

    Args:
        every: "experience"; or "epoch" or a number of iterations, to look for dead units in between, too.
        probe_samples: On how many training samples units are judged, at most.
        seed: Seed of the plugin's own random generator.
        groups: The hidden units, declared by hand for a model that cannot be traced; None: found by `find_units`.
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.
        **rule: `dead`, `fall`, `growth`, `tau`, `strength`, `moments`; see `plasticity.methods.adaptive.AdaptiveRule`.

    Attributes:
        record: How well experiences were learned.
        history: Between any two experiences how many units were dead and dormant, which treatment was given, to how
            many units, how far outputs moved, and the accuracy of the experience before; in between, treatments alone.

    Raises:
        UserError: If an argument is unknown or has no meaning.
    """

    method = "adaptive"
    acts = ("moves", "renews")
    between = True

    def __init__(
        self,
        *,
        every: Every = "experience",
        probe_samples: int = 2048,
        seed: int = 0,
        groups: Iterable[UnitGroup] | None = None,
        exclude: Exclude = None,
        dry_run: bool = False,
        **rule: Any,
    ) -> None:
        self.rule = change_rule(self, AdaptiveRule(), rule)
        super().__init__(
            every=every, probe_samples=probe_samples, seed=seed, groups=groups, exclude=exclude, dry_run=dry_run
        )
        self.record = LearningRecord(self.rule.fall)
        self._strongest = 1
        self._between = False
        self._values = InitialValues()
        self._entries: list[Entry] = []
        self._classes = 0
        self._accuracy: float | None = None
        self._right: Tensor | None = None
        self._judged = 0

    # --- Avalanche's callbacks ---------------------------------------------------------------------------------

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Judge how the experience before was learned, and treat."""
        self.take_hold(strategy.model)
        boundary = _at_task_boundary(strategy.experience)
        self._between = bool(boundary and self._recent.samples)
        if self._between:
            self._put_together(strategy)
            self._judge()
        super().before_training_exp(strategy, *args, **kwargs)
        if self._between and self.every != "experience":
            self.intervene(strategy)
        self._between = False
        if boundary:
            self._classes = _class_count(strategy.experience)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count the samples that were classified right before the update, and look at units if it is time."""
        outputs, labels = strategy.mb_output, strategy.mb_y
        if isinstance(outputs, Tensor) and outputs.dim() == 2 and labels.dim() == 1 and not labels.is_floating_point():
            right = (outputs.detach().argmax(1) == labels).sum()
            self._right = right if self._right is None else self._right + right
            self._judged += len(labels)
        super().after_training_iteration(strategy, *args, **kwargs)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Let go of the parameters, which may be replaced."""
        self._entries = []

    def take_hold(self, model: nn.Module) -> None:
        """Keep the first weights of what is new, and look up the parameters."""
        super().take_hold(model)
        self._entries = self._values.update(model, self.excluded.tensors(model))

    def preview(
        self,
        model: nn.Module,
        batches: Iterable[Tensor | tuple[Any, ...]],
        optimizer: Optimizer | None = None,
    ) -> Preview:
        """Say what would be treated if an experience began now; arguments as for every plugin."""
        between = copy.deepcopy(self)
        between._between = True
        return super(AdaptivePlugin, between).preview(model, batches, optimizer)

    # --- doing it ----------------------------------------------------------------------------------------------

    def _put_together(self, strategy: Any) -> None:
        """Count the samples of all processes."""
        group = group_of(strategy.model)
        if self._right is not None and group is not None:
            self._right, judged = add_up([self._right, torch.full_like(self._right, self._judged)], group)
            self._judged = int(judged)

    def _judge(self) -> None:
        """Choose the strongest treatment that the learning record allows."""
        self._accuracy = None if self._right is None else float(self._right) / self._judged
        self._right, self._judged = None, 0
        if self._accuracy is None or not self.record.add(self._classes, self._accuracy):
            self._strongest = 1
        elif self._strongest == STRONGEST:  # nothing helps: the data have become harder
            self.record.begin_anew()
            self._strongest = 1
        else:
            self._strongest += 1

    def treat(
        self, model: nn.Module, units: UnitGroups, probe: Probe, optimizer: Optimizer, generator: torch.Generator
    ) -> Treatment | None:
        """Treat once, as strongly as is needed."""
        strongest = self._strongest if self._between else 1
        report = treat_as_needed(
            model,
            units,
            probe,
            self.rule,
            strongest,
            optimizer,
            generator,
            self._initial | dict(self._values),
            self._entries if self._between else (),
            self.excluded.tensors(model),
        )
        if self._between and self._accuracy is not None:
            report.counts["accuracy"] = self._accuracy
        return report if self._between or report.counts["treatment"] else None

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state, the learning record among it."""
        return {
            **super().state_dict(),
            "record": self.record.state_dict(),
            "strongest": self._strongest,
            "classes": self._classes,
            "right": None if self._right is None else self._right.clone(),
            "judged": self._judged,
            "values": self._values.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned between two experiences."""
        super().load_state_dict(state)
        self.record.load_state_dict(state["record"])
        self._strongest, self._classes = int(state["strongest"]), int(state["classes"])
        self._right = None if state["right"] is None else state["right"].clone()
        self._judged = int(state["judged"])
        self._values.load_state_dict(state["values"])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_entries": []}


def _class_count(experience: Any) -> int:
    """Return how many classes an experience has; of an online stream, the experience that comes in parts."""
    whole = getattr(experience, "origin_experience", None) or experience
    classes = getattr(whole, "classes_in_this_experience", None)
    return len(set(whole.dataset.targets) if classes is None else classes)
