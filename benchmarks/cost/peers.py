"""Other packages that treat networks, measured beside ours where they are installed; none is needed.

- `ccbp-pytorch` (pip, MIT): a wrapper around an optimizer, which judges units by gradients instead of by what they
  contribute. With its defaults it looks for units to replace every 1,000 steps; as it is compared with our
  `continual-backprop`, it looks after every step, at the same rate, and replaces whole units.
"""

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.cost.cases import Case, Trainer

MODULE = "ccbp_pytorch"


def _wrapped(case: Case, device: torch.device, **settings: Any) -> Trainer:
    """Return what trains with the case's optimizer inside of the peer's."""
    trainer = Trainer(case, device)
    strategy = trainer.strategy
    strategy.optimizer = importlib.import_module(MODULE).CCBP(strategy.optimizer, model=strategy.model, **settings)
    return trainer


def _defaults(case: Case, device: torch.device) -> Trainer:
    return _wrapped(case, device)


def _as_ours(case: Case, device: torch.device) -> Trainer:
    return _wrapped(case, device, continuous=False, replacement_rate=1e-4, reset_interval=1)


def installed() -> dict[str, Callable[[Case, torch.device], Trainer]]:
    """Return what makes a trainer with each of them, by name; nothing where the package is not installed."""
    if find_spec(MODULE) is None:
        return {}
    return {"ccbp-pytorch": _defaults, "ccbp-pytorch, every step": _as_ours}
