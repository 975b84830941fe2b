"""Which classes an image is compared with, so that its cost does not grow with their number.

# N images, C classes (numbered from 0), M candidates, S sampled tail, B block, K compared classes, X some of a block
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cleanscale.maths.keyed_random import Purpose, generator

BLOCK_VALUES = 1 << 22  # float32 values of one block of rows: 16 MiB


@dataclass(frozen=True)
class Compared:
    """Which classes the images of a shard are compared with: all, or candidates and a sampled tail.

    The classes of the tail stand for all those that are neither candidates nor the own class (importance weights);
    they are drawn anew for each seed and are the same for all images.
    """

    num_classes: int
    candidate_NM: np.ndarray | None = None  # int; may hold the own class and repetitions; -1 where there is none
    tail_S: np.ndarray | None = None

    @classmethod
    def candidates(cls, candidate_NM: np.ndarray, num_classes: int, *, tail: int, seed: int) -> Compared:
        random = generator(seed, Purpose.CANDIDATES)
        tail_S = np.sort(random.choice(num_classes, min(tail, num_classes), replace=False))
        return cls(num_classes, np.asarray(candidate_NM, np.int64), tail_S)

    def blocks(self, images: int, width: int) -> Iterator[slice]:
        """Rows to work on together; `width` of what is gathered for each candidate."""
        each = self.num_classes if self.candidate_NM is None else self.candidate_NM.shape[1] * width
        return blocks_of_rows(images, max(each, width))

    def others(self, class_B: np.ndarray, rows: slice) -> Others:
        if self.candidate_NM is None or self.tail_S is None:
            log_count_BC = np.zeros((len(class_B), self.num_classes), np.float32)
            log_count_BC[np.arange(len(class_B)), class_B] = -np.inf
            return Others(log_count_BC)
        candidate_BM = self.candidate_NM[rows]
        near_BX = np.concatenate([class_B[:, None], candidate_BM], axis=1)
        real_BM = (candidate_BM >= 0) & ~_seen_before(near_BX)[:, 1:]
        real_BS = np.ones((len(class_B), len(self.tail_S)), bool)
        at_BX = np.minimum(np.searchsorted(self.tail_S, near_BX), len(self.tail_S) - 1)
        image, column = np.nonzero(self.tail_S[at_BX] == near_BX)
        real_BS[image, at_BX[image, column]] = False
        rest_B = self.num_classes - 1 - real_BM.sum(axis=1)
        each_B = rest_B / np.maximum(real_BS.sum(axis=1), 1)
        with np.errstate(divide="ignore"):
            log_count_BK = np.log(np.concatenate([real_BM, real_BS * each_B[:, None]], axis=1, dtype=np.float32))
        return Others(log_count_BK, np.maximum(candidate_BM, 0), self.tail_S)


@dataclass(frozen=True)
class Others:
    """The classes that a block of images is compared with: all (column k is class k), or candidates, then the tail."""

    log_count_BK: (
        np.ndarray
    )  # log of how many classes the column stands for; -inf: left out, as the own class always is
    candidate_BM: np.ndarray | None = None
    tail_S: np.ndarray | None = None

    def classes(self, at_X: np.ndarray) -> np.ndarray:
        """int [X, K]: the classes of the columns for some images of the block."""
        if self.candidate_BM is None or self.tail_S is None:
            return np.broadcast_to(np.arange(self.log_count_BK.shape[1]), (len(at_X), self.log_count_BK.shape[1]))
        tail_XS = np.broadcast_to(self.tail_S, (len(at_X), len(self.tail_S)))
        return np.concatenate([self.candidate_BM[at_X], tail_XS], axis=1)

    def products(self, vector_XH: np.ndarray, class_CH: np.ndarray, at_X: np.ndarray) -> np.ndarray:
        """[X, K] dot products of some images of the block with the vectors of their classes."""
        if self.candidate_BM is None or self.tail_S is None:
            return vector_XH @ class_CH.T
        near_XM = gathered_products(vector_XH, class_CH, self.candidate_BM[at_X])
        return np.concatenate([near_XM, vector_XH @ class_CH[self.tail_S].T], axis=1)


def gathered_products(vector_BH: np.ndarray, class_CH: np.ndarray, class_BM: np.ndarray) -> np.ndarray:
    """[B, M] products with the vectors of the classes named: a gather, never all classes."""
    return np.matmul(class_CH[class_BM], vector_BH[:, :, None])[:, :, 0]


def blocks_of_rows(images: int, values_each: int) -> Iterator[slice]:
    rows = max(1, BLOCK_VALUES // max(1, values_each))
    for start in range(0, images, rows):
        yield slice(start, min(start + rows, images))


def _seen_before(value_BX: np.ndarray) -> np.ndarray:
    """bool [B, X]: an earlier column of the row holds the same value."""
    order_BX = np.argsort(value_BX, axis=1, kind="stable")
    sorted_BX = np.take_along_axis(value_BX, order_BX, axis=1)
    again_BX = np.zeros(value_BX.shape, bool)
    again_BX[:, 1:] = sorted_BX[:, 1:] == sorted_BX[:, :-1]
    seen_BX = np.empty_like(again_BX)
    np.put_along_axis(seen_BX, order_BX, again_BX, axis=1)
    return seen_BX
