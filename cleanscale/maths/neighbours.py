"""Nearest neighbours of a block of images, searched in pieces, and how they vote.

# N images that are judged, K neighbours of each so far, V voters of a piece, D feature width, C classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_IMAGES = 16384  # voters that are searched at once: 16 MiB of float32 at a width of 256


@dataclass(frozen=True)
class Voters:
    """Images whose labels count as votes."""

    row_V: np.ndarray  # int64
    label_V: np.ndarray
    weight_V: np.ndarray  # float32: how many images of its class the voter stands for
    unit_VD: np.ndarray  # float16 of length 1

    def blocks(self) -> list[Voters]:
        starts = range(0, len(self.row_V), BLOCK_IMAGES)
        cut = [slice(start, start + BLOCK_IMAGES) for start in starts]
        return [Voters(self.row_V[c], self.label_V[c], self.weight_V[c], self.unit_VD[c]) for c in cut]


@dataclass(frozen=True)
class Nearest:
    """The most similar voters of each image, best first; similarity -inf where there are fewer than K."""

    row_N: np.ndarray  # the images themselves: no image votes on its own label
    similarity_NK: np.ndarray
    row_NK: np.ndarray
    label_NK: np.ndarray
    weight_NK: np.ndarray

    @classmethod
    def none(cls, row_N: np.ndarray, most: int) -> Nearest:
        shape = (len(row_N), most)
        nothing = np.full(shape, -1, np.int64)
        return cls(row_N, np.full(shape, -np.inf, np.float32), nothing, nothing, np.zeros(shape, np.float32))

    def among(self, unit_ND: np.ndarray, voters: Voters) -> Nearest:
        """With those of `voters` that are nearer than the ones so far; of equally near ones that with the lower row."""
        import faiss

        faiss.omp_set_num_threads(1)
        found, most = self, self.similarity_NK.shape[1]
        for block in voters.blocks():
            # One more than are kept: the image itself may be among them.
            near_NX, at_NX = faiss.knn(
                np.ascontiguousarray(unit_ND),
                np.ascontiguousarray(block.unit_VD, np.float32),
                min(most + 1, len(block.row_V)),
                metric=faiss.METRIC_INNER_PRODUCT,
            )
            near_NX[block.row_V[at_NX] == self.row_N[:, None]] = -np.inf
            found = found._merged(near_NX, block.row_V[at_NX], block.label_V[at_NX], block.weight_V[at_NX])
        return found

    def _merged(
        self, similarity_NX: np.ndarray, row_NX: np.ndarray, label_NX: np.ndarray, weight_NX: np.ndarray
    ) -> Nearest:
        similarity_NX = np.concatenate([self.similarity_NK, similarity_NX], axis=1)
        row_NX = np.concatenate([self.row_NK, row_NX], axis=1)
        best_NK = np.lexsort((row_NX, -similarity_NX), axis=1)[:, : self.similarity_NK.shape[1]]

        def best(value_NX: np.ndarray) -> np.ndarray:
            return np.take_along_axis(value_NX, best_NK, axis=1)

        return Nearest(
            self.row_N,
            best(similarity_NX),
            best(row_NX),
            best(np.concatenate([self.label_NK, label_NX], axis=1)),
            best(np.concatenate([self.weight_NK, weight_NX], axis=1)),
        )

    def shares(self, label_N: np.ndarray, neighbours: Sequence[int]) -> list[np.ndarray]:
        """float32 [N] for each number of neighbours: the share of their votes for the image's own label."""
        weight_NK = np.where(np.isfinite(self.similarity_NK), self.weight_NK, 0)
        own_NK = np.cumsum(weight_NK * (self.label_NK == label_N[:, None]), axis=1)
        all_NK = np.cumsum(weight_NK, axis=1)
        at = [min(k, weight_NK.shape[1]) - 1 for k in neighbours]
        return [(own_NK[:, k] / np.maximum(all_NK[:, k], 1e-12)).astype(np.float32) for k in at]


def voters_per_class(count_C: np.ndarray, most: int) -> int:
    """The largest m such that m voters of each class (all of a smaller one) are at most `most` together; at least 1."""
    count_C = np.sort(np.asarray(count_C, np.int64))
    if count_C.sum() <= most:
        return int(count_C[-1]) if len(count_C) else 1
    # With a limit m between two class sizes, smaller classes are in as a whole and the others count m each.
    before_C = np.cumsum(count_C) - count_C
    limit_C = (most - before_C) // np.arange(len(count_C), 0, -1)
    fits = np.flatnonzero(limit_C < count_C)
    return max(1, int(limit_C[fits[0]]))
