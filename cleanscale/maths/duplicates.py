"""How much two classes look like one thing under two names, from their reference sets.

# C classes, M references of all of them, P pairs, D width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cleanscale.maths.references import ReferenceSets


@dataclass(frozen=True)
class ClassSpread:
    """Where the images of each class lie. label_C sorted."""

    label_C: np.ndarray
    mean_CD: np.ndarray  # float32
    variance_C: np.ndarray  # float32: mean square distance to the mean
    images_C: np.ndarray  # float32: that the references stand for

    @classmethod
    def of(cls, sets: ReferenceSets) -> ClassSpread:
        class_M = np.repeat(np.arange(len(sets)), np.diff(sets.offset_C1))
        mean_CD = sets.mean_CD()
        square_M = np.square(np.asarray(sets.vector_MD, np.float32) - mean_CD[class_M]).sum(axis=1)
        images_C = np.bincount(class_M, sets.count_M, minlength=len(sets))
        scatter_C = np.bincount(class_M, square_M * sets.count_M, minlength=len(sets))
        variance_C = scatter_C / np.maximum(images_C - 1, 1)
        return cls(sets.label_C, mean_CD, variance_C.astype(np.float32), images_C.astype(np.float32))

    @classmethod
    def concatenate(cls, parts: Sequence[ClassSpread]) -> ClassSpread:
        """Of ranges of classes, in order."""
        names = ("label_C", "mean_CD", "variance_C", "images_C")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def pairs(self, label_P: np.ndarray, other_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(overlap, sureness) of pairs of these classes, float32 [P] in [0, 1].

        overlap: 1 less the root of the share that the distance of the two means has in the variance of both classes
        together, without what chance adds to it: 1 where the means are no further apart than those of two samples of
        one class. sureness: the same, less for classes of few images (n: their harmonic mean), by 1 - 1 / sqrt(n). With
        a class of 300 look-alikes split at random, the overlap of its halves was the largest of all pairs three times
        out of three; cosines of means had them among the first six.
        """
        a_P, b_P = np.searchsorted(self.label_C, label_P), np.searchsorted(self.label_C, other_P)
        images_aP, images_bP = self.images_C[a_P], self.images_C[b_P]
        chance_P = self.variance_C[a_P] / images_aP + self.variance_C[b_P] / images_bP
        square_P = np.square(self.mean_CD[a_P] - self.mean_CD[b_P]).sum(axis=1)
        total_P = self.variance_C[a_P] + self.variance_C[b_P] + square_P
        between_P = np.maximum(square_P - chance_P, 0) / np.maximum(total_P, 1e-12)
        overlap_P = 1 - np.sqrt(between_P)
        images_P = 2 / (1 / images_aP + 1 / images_bP)
        return overlap_P.astype(np.float32), (overlap_P * (1 - images_P**-0.5)).astype(np.float32)
