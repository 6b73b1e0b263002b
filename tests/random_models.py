"""Random models of all steps there are, with inputs of four kinds."""

import grammar_layers  # noqa: F401  # adds steps
import grammar_tensors  # noqa: F401  # likewise
import torch
from grammar import OPERATIONS, Program
from hypothesis import strategies as st

__all__ = ["INPUTS", "OPERATIONS", "STEPS", "Program"]

INPUTS = {
    "images": lambda: (torch.randn(3, 3, 4, 4),),
    "vectors": lambda: (torch.randn(3, 4),),
    "tokens": lambda: (torch.randn(3, 5, 4),),
    "images and vectors": lambda: (torch.randn(3, 3, 4, 4), torch.randn(3, 4)),
}
STEPS = st.lists(
    st.tuples(st.integers(0, len(OPERATIONS) - 1), st.integers(0, 2), st.integers(0, 4), st.integers(0, 23)),
    min_size=2,
    max_size=14,
)
