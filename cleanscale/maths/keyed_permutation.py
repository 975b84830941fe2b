"""A permutation of 0 .. n-1 that takes no memory: any part of it, and of its inverse, is computed where it is wanted.

A Feistel network over the next power of four, walked along its cycle until it is back below n (Black and Rogaway,
"Ciphers with arbitrary finite domains", 2002).

# M indices
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cleanscale.maths.keyed_random import Purpose, hash_about

ROUNDS = 4


@dataclass(frozen=True)
class KeyedPermutation:
    """One permutation of 0 .. length-1 for each (seed, purpose, key)."""

    length: int
    seed: int
    purpose: Purpose
    key: int

    def __call__(self, index_M: np.ndarray) -> np.ndarray:
        """int64 [M]: where each index goes."""
        return self._walk(index_M, tuple(range(ROUNDS)), mirrored=False)

    def inverse(self, index_M: np.ndarray) -> np.ndarray:
        """int64 [M]: which index goes there."""
        return self._walk(index_M, tuple(reversed(range(ROUNDS))), mirrored=True)

    def _walk(self, index_M: np.ndarray, rounds: tuple[int, ...], *, mirrored: bool) -> np.ndarray:
        found_M = self._network(np.asarray(index_M).astype(np.uint64), rounds, mirrored)
        while len(outside := np.flatnonzero(found_M >= self.length)):
            found_M[outside] = self._network(found_M[outside], rounds, mirrored)
        return found_M.astype(np.int64)

    def _network(self, index_M: np.ndarray, rounds: tuple[int, ...], mirrored: bool) -> np.ndarray:
        bits = np.uint64(max(1, (max(1, self.length - 1).bit_length() + 1) // 2))
        mask = np.uint64((1 << int(bits)) - 1)
        left_M, right_M = index_M >> bits, index_M & mask
        for number in rounds:
            about = right_M if not mirrored else left_M
            mixed_M = hash_about(self.seed, self.purpose, self.key * ROUNDS + number, about) & mask
            if mirrored:
                left_M, right_M = right_M ^ mixed_M, left_M
            else:
                left_M, right_M = right_M, left_M ^ mixed_M
        return (left_M << bits) | right_M
