"""The states of all random generators that a run shares with the rest of its process."""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the states of the generators of Python, numpy and PyTorch, on every device in use."""
    found = host_random_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps.get_rng_state()
    return found


def host_random_state() -> dict[str, Any]:
    """Return the states of the generators on the host, from which data loaders draw."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }


def load_random_state(state: dict[str, Any]) -> None:
    """Put those generators into their states that are among what `random_state` returned."""
    if "python" in state:
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
    if "numpy" in state:
        kind, keys, position, has_gauss, value = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, value))
    if "torch" in state:
        torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state:
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"].cpu())


def same_randomness(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Say whether two states would give the same random numbers on the host."""
    if not torch.equal(one["torch"], other["torch"]):
        return False
    if "python" not in one:
        return True
    numpy, others = one["numpy"], other["numpy"]
    return bool(one["python"] == other["python"] and numpy[2:] == others[2:] and torch.equal(numpy[1], others[1]))
