"""Label planes: for every element of a tensor, the number of the unit whose value it depends on.

A plane has the shape of the tensor it describes; 0 stands for no unit. Operations that only move data are run on the
planes themselves, which keeps the map exact through any view, slice, pad or concatenation. An element that depends on
several units, such as a sum, has several planes. Planes are float32, because every data movement is implemented for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Plane = Tensor
LARGEST_LABEL = 2**24
"""Largest integer up to which float32 holds every integer."""


@dataclass(frozen=True)
class Norm:
    """A normaliser that a written row has passed.

    Attributes:
        name: Qualified name.
        channels: (rows,) channel of the normaliser that scales each row of the writer, -1 for none.
    """

    name: str
    channels: Tensor


@dataclass(frozen=True)
class Value:
    """What a tensor depends on.

    Attributes:
        planes: Label planes; an element depends on its label in each of them.
        norms: By number of a writing call, the last normaliser its rows have passed.
        directions: By number of a writing call, -1 where its rows stand with their sign turned round, 0 where it is not
            known, and nothing where they rise as they were written.
    """

    planes: tuple[Plane, ...]
    norms: Mapping[int, Norm] = field(default_factory=dict)
    directions: Mapping[int, int] = field(default_factory=dict)

    def labels(self) -> Tensor:
        """Return the labels that occur, sorted, without 0."""
        return distinct(self.planes)


def distinct(planes: Iterable[Plane]) -> Tensor:
    """Return the labels that occur in the planes as sorted int64, without 0."""
    found = [torch.unique(compact(plane)) for plane in planes]
    if not found:
        return torch.empty(0, dtype=torch.int64)
    labels: Tensor = torch.unique(torch.cat(found)).to(torch.int64)
    return labels[labels > 0]


def compact(plane: Plane) -> Plane:
    """Drop the repetition of expanded dimensions."""
    for dim, stride in enumerate(plane.stride()):
        if stride == 0 and plane.shape[dim] > 1:
            plane = plane.narrow(dim, 0, 1)
    return plane


def settle(plane: Plane) -> Plane:
    """Expand again the dimensions along which a plane repeats itself, so that it stays small to work on."""
    small = compact(plane)
    for dim, length in enumerate(small.shape):
        if length > 1:
            first = small.narrow(dim, 0, 1)
            if torch.equal(small, first.expand_as(small)):
                small = first
    return small.expand(plane.shape)


def overlay(planes: Iterable[Plane]) -> tuple[Plane, ...]:
    """Put planes of one shape together, joining those that nowhere name two different units."""
    joined: list[Plane] = []
    for plane in map(settle, planes):
        for i, other in enumerate(joined):
            if plane is other:
                break
            a, b = torch.broadcast_tensors(compact(plane), compact(other))
            if bool(((a == b) | (a == 0) | (b == 0)).all()):
                joined[i] = torch.maximum(a, b).expand(plane.shape)
                break
        else:
            joined.append(plane)
    return tuple(plane for plane in joined if bool(compact(plane).any()))


def along(plane: Plane, dims: tuple[int, ...]) -> tuple[Plane, Tensor]:
    """Reduce dimensions to the one label they hold.

    Returns:
        The labels with the reduced dimensions kept at length 1, and a boolean tensor of the same shape that is True
        where more than one unit occurs. Elements that depend on no unit do not count.
    """
    small = compact(plane)
    if not dims or small.numel() == 0:
        return small, torch.zeros_like(small, dtype=torch.bool)
    high = small.amax(dims, keepdim=True)
    low = torch.where(small == 0, float("inf"), small).amin(dims, keepdim=True)
    return high, (low != high) & (high > 0)


def varying_dims(planes: Iterable[Plane]) -> list[int]:
    """Return the dimensions along which any of the planes changes."""
    dims: set[int] = set()
    for plane in planes:
        small = compact(plane)
        for dim, length in enumerate(small.shape):
            if length > 1 and bool((small != small.narrow(dim, 0, 1)).any()):
                dims.add(dim)
    return sorted(dims)


def line(plane: Plane, dim: int | None) -> Tensor:
    """Return the int64 labels along one dimension of a plane that changes along no other."""
    for other in range(plane.dim()):
        if other != dim:
            plane = plane.narrow(other, 0, 1)
    return plane.reshape(-1).to(torch.int64)
