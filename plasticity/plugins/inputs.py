"""What a strategy calls its model with."""

from __future__ import annotations

from typing import Any

from avalanche.models import SCRModel, TrainEvalModel
from avalanche.models.utils import is_multi_task_module

from plasticity.probe import HEAD_BY_MODE

HEAD_BY_MODE.update({TrainEvalModel, SCRModel})  # of iCaRL and supervised contrastive replay


def model_inputs(strategy: Any) -> tuple[Any, ...]:
    """Return the positional inputs with which a strategy calls its model on the present mini-batch."""
    if is_multi_task_module(strategy.model):
        return strategy.mb_x, strategy.mb_task_id
    return (strategy.mb_x,)
