"""Which queries and reference sets a CleanNet step uses: classes are drawn first, then several queries of each.

A class's reference set is then encoded once for all of its queries. Half of the queries are verified.

# N images of this worker, S classes of a step, K references, Q queries, P images of a pool
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cleanscale.maths.keyed_random import Purpose, generator
from cleanscale.maths.references import ReferenceSets
from cleanscale.schema import UNSEEN


@dataclass(frozen=True)
class Pool:
    """Images by class: class `position_C[i]` (a position in the reference sets) has rows `start_C[i]` + 0 .. size."""

    image_P: np.ndarray
    position_C: np.ndarray
    start_C: np.ndarray
    size_C: np.ndarray

    @staticmethod
    def of(image_P: np.ndarray, position_P: np.ndarray) -> Pool:
        """Images with references (position >= 0), sorted by class."""
        image_P, position_P = image_P[position_P >= 0], position_P[position_P >= 0]
        order = np.argsort(position_P, kind="stable")
        position_C, start_C, size_C = np.unique(position_P[order], return_index=True, return_counts=True)
        return Pool(image_P[order], position_C, start_C, size_C)

    def draw(self, rng: np.random.Generator, classes: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
        """(images [Q], their classes' positions [Q]): distinct classes, images of a class with replacement."""
        many = len(self.position_C)
        if many <= classes:
            drawn = np.arange(many)
        elif many <= 32 * classes:
            drawn = np.argpartition(rng.random(many), classes)[:classes]
        else:  # among very many classes, draw with replacement and drop the few that come twice
            drawn = np.unique(rng.integers(0, many, classes))
        at = (rng.random((len(drawn), per_class)) * self.size_C[drawn, None]).astype(np.int64)
        return self.image_P[(self.start_C[drawn, None] + at).ravel()], np.repeat(self.position_C[drawn], per_class)


@dataclass(frozen=True)
class Batch:
    """One step: queries and the reference sets of their classes."""

    image_Q: np.ndarray  # positions in this worker's features
    own_Q: np.ndarray  # position of the query's class among the step's classes
    reference_SK: np.ndarray  # positions in the reference vectors
    real_SK: np.ndarray  # False: padding


class GroupedBatches:
    """Draws keyed by (seed, stream, step, rank): a step's batch is a function of these and of the worker's images.

    Classes without references give no queries. When nothing is verified, or everything is, all queries come from the
    images there are. own_N: bool, images that may be drawn as unseen; None: all.
    """

    def __init__(
        self,
        label_N: np.ndarray,
        verified_N: np.ndarray,
        references: ReferenceSets,
        *,
        classes: int,
        queries_per_class: int,
        references_per_step: int,
        seed: int,
        own_N: np.ndarray | None = None,
        stream: int = 0,
        rank: int = 0,
    ) -> None:
        position_N = references.position(label_N)
        unseen_N = np.asarray(verified_N) == UNSEEN
        drawn_N = unseen_N if own_N is None else unseen_N & own_N
        pools = [Pool.of(np.flatnonzero(these_N), position_N[these_N]) for these_N in (~unseen_N, drawn_N)]
        self._pools = [pool for pool in pools if len(pool.position_C)]
        self._offset_C1 = references.offset_C1
        self._classes, self._queries, self._references = classes, queries_per_class, references_per_step
        self._key = (seed, stream, rank)

    @property
    def empty(self) -> bool:
        """True when this worker has no image of a class with references."""
        return not self._pools

    def batch(self, step: int) -> Batch:
        """The step's queries, and the reference sets of their classes (each class once)."""
        seed, stream, rank = self._key
        rng = generator(seed, Purpose.CLEANNET, stream, step, rank)
        classes = self._classes * (2 // len(self._pools))
        drawn = [pool.draw(rng, classes, self._queries) for pool in self._pools]
        position_S, own_Q = np.unique(np.concatenate([position_Q for _, position_Q in drawn]), return_inverse=True)
        reference_SK, real_SK = reference_positions(self._offset_C1, position_S)
        if 0 < self._references < reference_SK.shape[1]:
            key_SK = np.where(real_SK, rng.random(reference_SK.shape), 2.0)
            kept = np.argpartition(key_SK, self._references, axis=1)[:, : self._references]
            reference_SK, real_SK = np.take_along_axis(reference_SK, kept, 1), np.take_along_axis(real_SK, kept, 1)
        return Batch(np.concatenate([image_Q for image_Q, _ in drawn]), own_Q, reference_SK, real_SK)


def reference_positions(offset_C1: np.ndarray, position_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([S, K] positions in the reference vectors, [S, K] False where padded); K is the largest of these sets."""
    start_S, size_S = offset_C1[position_S], offset_C1[position_S + 1] - offset_C1[position_S]
    at_K = np.arange(size_S.max(initial=1))
    real_SK = at_K < size_S[:, None]
    return start_S[:, None] + np.where(real_SK, at_K, 0), real_SK
