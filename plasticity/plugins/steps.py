"""What the plugins share that act at every step rather than at a few times."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from plasticity.distributed import group_of, require_agreement
from plasticity.exclusion import Exclude, Exclusion
from plasticity.plugins.beside import refuse_conflicts, refuse_empty
from plasticity.plugins.parts import Parts
from plasticity.plugins.reporting import Reporting
from plasticity.plugins.withholding import note_divergence
from plasticity.preview import Preview
from plasticity.values import check_flag


class StepPlugin(Reporting, SupervisedPlugin[Any], supports_distributed=True):
    """A plugin that acts at every step and reports once an experience.

    Args:
        exclude: Layers to leave alone, by qualified name or pattern, one or several; see `plasticity.exclusion`.
        dry_run: Treat nothing, but tell in `history` and to the loggers what would be treated, and why.

    Attributes:
        excluded: The layers that are left alone.
        history: For every experience how many steps were taken, and more, with its "experience" and "method"; see
            `take_history` for long streams.
    """

    method = "steps"
    acts: Collection[str] = ("moves",)

    def __init_subclass__(cls, supports_distributed: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(supports_distributed=supports_distributed, **kwargs)

    def __init__(self, *, exclude: Exclude = None, dry_run: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Avalanche does not annotate it
        self.history: list[dict[str, Any]] = []
        self.reported = 0
        self.excluded = Exclusion(exclude)
        self.dry_run = check_flag("dry_run", dry_run)
        self._steps = 0
        self._parts = Parts()

    def acts_on(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters on which the plugin acts, by qualified name."""
        raise NotImplementedError

    def preview(self, model: nn.Module) -> Preview:
        """Say on which parameters the plugin would act at every step. Neither the network nor the plugin changes.

        Args:
            model: The network.
        """
        found = copy.deepcopy(self).acts_on(model)
        return Preview(self.method, parameters={name: (each.numel(), each.numel()) for name, each in found.items()})

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse what leaves no room for the plugin, see `plasticity.plugins.beside`."""
        refuse_conflicts(self, strategy)

    def after_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse an experience without samples."""
        refuse_empty(self, strategy)

    def summary(self, model: nn.Module) -> dict[str, float | None]:
        """Return what is to be told of an experience at its end."""
        return {}

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Report; of an online stream when the boundary of an experience comes, if it tells them."""
        require_agreement(strategy.model, group_of(strategy.model), type(self).__name__)
        if not self._parts.complete(strategy.experience):
            return
        if self._steps:
            self.report(
                {
                    "experience": int(strategy.experience.current_experience),
                    "method": self.method,
                    "steps": self._steps,
                    **({"dry_run": True} if self.dry_run else {}),
                    **self.summary(strategy.model),
                    **note_divergence(self, strategy),
                }
            )
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the plugin's state as tensors and plain values."""
        return {
            "history": [dict(entry) for entry in self.history],
            "reported": self.reported,
            "steps": self._steps,
            "parts": self._parts.seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.history = [dict(entry) for entry in state["history"]]
        self.reported = int(state.get("reported", len(self.history)))  # not there in states of before
        self._steps, self._parts.seen = int(state["steps"]), int(state["parts"])
