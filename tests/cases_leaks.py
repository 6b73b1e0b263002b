"""Hand-written models whose units are seen through caches, shared memory, or places that the input chooses."""

import numpy as np
import torch
from cases import vectors

AB = {"a": (6, 8), "b": (8, 3)}


class _Cache:
    """Keeps activations where nobody looks for them."""

    def __init__(self):
        self.pages = {"first": [None]}


CACHE = _Cache()


def _cached(m, x):
    h = torch.relu(m.a(x))
    CACHE.pages["first"][0] = h.detach()[:, :2]
    return m.b(h)


def _array_of_the_same_memory(m, x):
    made = torch.zeros(len(x), 8)
    array = made.numpy()
    made.copy_(torch.relu(m.a(x)))
    return m.b(made) + torch.from_numpy(array[:, :3].copy())


def _memory_of_an_array(m, x):
    array = np.zeros((len(x), 8), np.float32)
    made = torch.from_numpy(array).copy_(torch.relu(m.a(x)))
    return m.b(made) + torch.from_numpy(array[:, :3].copy())


def _exchanged_memory(m, x):
    made = torch.zeros(len(x), 8)
    array = np.from_dlpack(made)
    made.copy_(torch.relu(m.a(x)).detach())
    return m.b(made) + torch.from_numpy(array[:, :3].copy())


def _gathered_by_input(m, x):
    h = torch.relu(m.a(x))
    return m.b(h.gather(1, (x[:, :3] > 100).long()))


def _indexed_by_input(m, x):
    h = torch.relu(m.a(x))
    return m.b(torch.stack([h[torch.arange(len(x)), (x[:, i] > 100).long()] for i in range(3)], 1))


def _selected_by_input(m, x):
    h = torch.relu(m.a(x))
    return m.b(h.index_select(1, (x[0, :3] > 100).long()))


def _token_of_input(m, x):
    h = torch.relu(m.a(x))
    return m.b(h[torch.arange(len(x)), (x[:, :, 0] > 0).sum(1).clamp(max=4)])


LEAKS = [
    vectors(_cached, name="kept in an object", **AB, private="", watched="a"),
    vectors(_array_of_the_same_memory, name="an array of the same memory", **AB, private="", watched="a"),
    vectors(_memory_of_an_array, name="memory of an array", **AB, private="", watched="a"),
    vectors(_exchanged_memory, name="memory exchanged", **AB, private="", watched="a"),
    vectors(_gathered_by_input, name="gathered by the input", a=(6, 8), b=(3, 3), private="", watched="a"),
    vectors(_indexed_by_input, name="indexed by the input", a=(6, 8), b=(3, 3), private="", watched="a"),
    vectors(_selected_by_input, name="selected by the input", a=(6, 8), b=(3, 3), private="", watched="a"),
    vectors(_token_of_input, name="a token that the input chooses", shape=(4, 5, 6), **AB, private="a"),
]
