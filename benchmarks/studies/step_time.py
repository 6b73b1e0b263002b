"""How long a training step takes before and after units are removed, measured on networks of both sizes by turns."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from plasticity import find_units
from plasticity.surgery.removal import remove_units

BLOCKS, STEPS = 9, 10


def shrunk(build: Callable[[], nn.Module], example: torch.Tensor, sizes: Mapping[str, int]) -> nn.Module:
    """Make a network whose groups of units are as small as those of another.

    Args:
        build: Makes a network of the original size.
        example: Inputs for it.
        sizes: Units that are left, by group name; groups that are not named keep theirs.

    Returns:
        The network, with random weights.
    """
    model = build()
    units = find_units(model, example)
    gone = {g.name: torch.arange(sizes[g.name], g.size) for g in units if sizes.get(g.name, g.size) < g.size}
    remove_units(model, units, gone).forget()
    return model


def step_seconds(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = STEPS) -> float:
    """Return the mean time of the processor that a training step with Adam takes, in seconds; the first is left out."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    start = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - start) / steps


def step_ratio(
    build: Callable[[], nn.Module],
    sizes: Sequence[Mapping[str, int]],
    shape: tuple[int, ...],
    classes: int,
    batch_size: int,
    blocks: int | None = None,
) -> list[float]:
    """Return how long a training step takes in smaller networks, in units of that in the original one.

    Networks take turns, on one thread, and of their times the medians are compared, so that whatever else the machine
    does hits all alike.

    Args:
        build: Makes a network of the original size.
        sizes: Of each smaller network, the units that are left by group name.
        shape: Of one sample.
        classes: Number of labels.
        batch_size: Samples in a step.
        blocks: How many times each is measured, over several steps; None: enough for a steady median.
    """
    x, y = torch.randn(batch_size, *shape), torch.arange(batch_size) % classes
    networks = [build(), *(shrunk(build, x[:4], each) for each in sizes)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = np.array([[step_seconds(model, x, y) for model in networks] for _ in range(blocks or BLOCKS)])
    finally:
        torch.set_num_threads(threads)
    medians = np.median(times, axis=0)
    return [float(value / medians[0]) for value in medians[1:]]
