"""Learning without labels: a network's own predictions stand in for them where it is confident.

Source of the idea: Mitra and Franco 2018, arXiv 1802.06861, where the gap between the two largest outputs says which
unlabelled data to adapt on. Ours are: the gap of probabilities, the share of each mini-batch that is kept, and
predictions of the network as it is at each step rather than before adaptation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from plasticity.errors import UserError


def confident_predictions(output: Tensor, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return what a network predicts for those samples of a mini-batch of which it is most sure.

    Args:
        output: (samples, classes) logits, of at least two classes.
        share: Of the samples, in (0, 1]: that many are kept, rounded up, by the margin between the largest and the
            second largest probability. Of equals the first is kept.

    Returns:
        Their numbers in the mini-batch, rising, and the predicted classes; both (kept,) int64 on the output's device,
        which is not waited for.

    Raises:
        UserError: If there are no logits of at least two classes.
    """
    if output.dim() != 2 or output.shape[1] < 2:
        raise UserError(
            f"predictions can stand in for labels where the model returns logits of at least two classes, (samples, "
            f"classes), not {tuple(output.shape)}"
        )
    largest, classes = output.detach().float().softmax(1).topk(2, dim=1)
    number = math.ceil(share * len(output) - 1e-9)
    margin = largest[:, 0] - largest[:, 1]
    rows = margin.argsort(descending=True, stable=True)[:number].sort().values
    return rows, classes[rows, 0]


class SelfLabels:
    """A criterion that asks the network instead of the labels.

    Args:
        criterion: The criterion proper: called with outputs (kept, classes) and predicted classes (kept,).
        share: Which part of a mini-batch is kept, see `confident_predictions`.

    Attributes:
        calls: How often it was called.
    """

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor], share: float = 0.5) -> None:
        self.criterion = criterion
        self.share = share
        self.calls = 0

    def __call__(self, output: Tensor, labels: Any) -> Tensor:
        """Return the loss of the most confident samples against the network's own predictions; labels are ignored."""
        self.calls += 1
        rows, predicted = confident_predictions(output, self.share)
        return self.criterion(output[rows], predicted)
