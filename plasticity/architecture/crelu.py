"""Concatenated ReLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CReLU(nn.Module):
    """Concatenated ReLU: `[relu(x), relu(-x)]`.

    Of the two halves of a unit one is above 0 unless x is exactly 0, so that a gradient always gets through.
    `find_units` sees one unit with two outputs, and counts of activity go over both: such a unit is never dead while
    its inputs are not 0.

    Args:
        dim: Dimension of the units, which becomes twice as long.

    Source: Abbas et al. 2023, arXiv 2303.07507; Shang et al. 2016, arXiv 1603.05201.
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Activate.

        Args:
            x: Any shape with n units along `dim`.

        Returns:
            The same with 2 n along `dim`: first the positive parts, then the negative ones.
        """
        return F.relu(torch.cat([x, -x], dim=self.dim))

    def extra_repr(self) -> str:
        """Return what `repr` shows."""
        return f"dim={self.dim}"
