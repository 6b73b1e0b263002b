"""Optimizers that keep a network plastic."""

from plasticity.optim.upgd import UPGD

__all__ = ["UPGD"]
