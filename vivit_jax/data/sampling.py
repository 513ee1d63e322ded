"""In which order training sees the examples: one order an epoch, a function of the seed and the epoch alone."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int64

SAMPLING = ('uniform', 'balanced')


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """The orders of all epochs.

    Attributes:
        length: Examples, and so the length of an epoch.
        seed: Another number, other orders.
        classes: The class of each example, for balanced sampling: all classes come equally often (to one), so that
            the examples of rare ones are repeated and of frequent ones only some are seen in an epoch. None:
            every example once.
    """

    length: int
    seed: int
    classes: Int64[np.ndarray, ' n'] | None = None

    @functools.lru_cache(maxsize=8)  # noqa: B019 (a run has one of these, and a batch may straddle epochs)
    def __call__(self, epoch: int) -> Int64[np.ndarray, ' n']:
        """Returns the indices of the examples of an epoch, in order."""
        rng = np.random.default_rng((self.seed, epoch, self.length))
        if self.classes is None:
            return rng.permutation(self.length)
        names = np.unique(self.classes)
        shares = np.full(len(names), self.length // len(names))
        shares[rng.permutation(len(names))[: self.length % len(names)]] += 1
        chosen = []
        for name, share in zip(names, shares, strict=True):
            members = np.flatnonzero(self.classes == name)
            rounds = -(-share // len(members))
            again = [rng.permutation(members) for _ in range(rounds)]
            chosen.append(np.concatenate(again)[:share] if rounds else members[:0])
        return rng.permutation(np.concatenate(chosen))
