"""Avalanche's training loop, with places to save in between and to go on from."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from avalanche.training import Naive

from benchmarks.resuming.randomness import host_random_state, load_random_state, same_randomness
from plasticity.loading.loader import TensorLoader

MOST_DRAWS = 64
"""Of how many mini-batches of an epoch it is kept with which random numbers they were drawn, at most."""

Draws = dict[int, dict[str, Any]]
"""Random states before mini-batches were drawn, by number, where others had drawn random numbers in between."""


class Keeper(Protocol):
    """Saves and restores in the middle of an experience."""

    def start(self) -> tuple[int, int, Draws] | None:
        """Return the epoch, the mini-batches done in it, and its draws, where to go on from; None: at the beginning."""

    def go_on(self) -> None:
        """Put everything into the state it had there."""

    def due(self) -> bool:
        """Say whether it is time to save."""

    def save(self, epoch: int, done: int, draws: Draws) -> None:
        """Save, between two mini-batches."""


class KeptNaive(Naive):
    """Naive fine-tuning that can be saved between any two mini-batches.

    To go on, it begins the experience as before, from the state at its beginning, so that everything that plugins set
    up for it is there; then it passes over what was done, and takes over the state in which it was.

    Attributes:
        keeper: Saves and restores; None: nothing is different from Naive.
    """

    keeper: Keeper | None = None

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """Train on an experience, as Avalanche does, from the epoch on that was not completed before."""
        start = None if self.keeper is None else self.keeper.start()
        for epoch in range(0 if start is None else start[0], self.train_epochs):
            self._before_training_epoch(**kwargs)
            if self._stop_training:
                self._stop_training = False
                break
            loader = self.dataloader
            if self.keeper is not None:
                self.dataloader = _Batches(loader, epoch, self.keeper)
            try:
                self.training_epoch(**kwargs)
            finally:
                self.dataloader = loader
            self._after_training_epoch(**kwargs)


class _Batches:
    """The mini-batches of an epoch, with the keeper's turn between any two.

    Which samples a loader draws follows from the random states of the process when it begins, and perhaps again later,
    where a small data set is gone through several times. To pass over mini-batches they are drawn again, with the
    states of then.
    """

    def __init__(self, loader: Any, epoch: int, keeper: Keeper):
        self.loader = loader
        self.epoch = epoch
        self.keeper = keeper

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        start = self.keeper.start()
        draws: Draws = {0: self._randomness()} if start is None else start[2]
        done = 0 if start is None else start[1]
        load_random_state(draws[0])
        batches = iter(self.loader)
        for number in range(done):
            if number in draws:
                load_random_state(draws[number])
            next(batches)
        after = self._randomness()
        if start is not None:
            self.keeper.go_on()
        while True:
            known = len(draws) <= MOST_DRAWS
            if done and known and done < self._length() and self.keeper.due():
                self.keeper.save(self.epoch, done, draws)
            before = self._randomness() if known else after
            try:
                batch = next(batches)
            except StopIteration:
                return
            if known:
                drawn_after, after = after, self._randomness()
                if done and not same_randomness(before, after) and not same_randomness(before, drawn_after):
                    draws[done] = before
            yield batch
            done += 1

    def _randomness(self) -> dict[str, Any]:
        """Return the random states that the loader may draw from."""
        # Loaders of tensors shuffle by PyTorch's; others may pass samples through any function.
        return {"torch": torch.get_rng_state()} if isinstance(self.loader, TensorLoader) else host_random_state()

    def _length(self) -> float:
        try:
            return len(self.loader)
        except TypeError:
            return float("inf")
