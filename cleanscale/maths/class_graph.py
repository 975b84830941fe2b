"""The class most relevant to an image, found among the neighbours of classes that are known to be like it.

No search: what it costs does not grow with the number of classes.

# X images, S classes to start from, K neighbours, C classes (numbered from 0), E embedding width
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cleanscale.maths.compared_classes import blocks_of_rows, gathered_products


@dataclass(frozen=True)
class ClassGraph:
    """All classes with their nearest others. vector_CE: float32 of length 1, zeros for a class without embedding."""

    vector_CE: np.ndarray
    neighbour_CK: np.ndarray  # int32; -1 where there is none

    def embeddings(self, label_N: np.ndarray) -> np.ndarray:
        """float32 [N, E]; NaN for classes without."""
        known_N = (np.asarray(label_N) >= 0) & (np.asarray(label_N) < len(self.vector_CE))
        vector_NE = self.vector_CE[np.where(known_N, label_N, 0)]
        there_N = known_N & vector_NE.any(axis=1)
        return np.where(there_N[:, None], vector_NE, np.nan).astype(np.float32)

    def nearest_other(
        self, query_XE: np.ndarray, own_X: np.ndarray, start_XS: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(int32 label or -1, float32 cosine or NaN) of the best class but the own that was looked at.

        Those are the classes to start from (-1: none), their neighbours, and then the neighbours of the best of them.
        """
        start_XS = np.where(start_XS < len(self.vector_CE), start_XS, -1)  # ids beyond the last class with images
        label_X = np.full(len(own_X), -1, np.int32)
        cosine_X = np.full(len(own_X), -np.inf, np.float32)
        looked_at = start_XS.shape[1] * (1 + self.neighbour_CK.shape[1])
        for rows in blocks_of_rows(len(own_X), looked_at * self.vector_CE.shape[1]):
            start_BS = start_XS[rows]
            first_BY = np.concatenate([start_BS, self.neighbours(start_BS)], axis=1)
            label_B, cosine_B = self.best(query_XE[rows], own_X[rows], first_BY)
            further_B, higher_B = self.best(query_XE[rows], own_X[rows], self.neighbours(label_B[:, None]))
            better_B = higher_B > cosine_B
            label_X[rows] = np.where(better_B, further_B, label_B)
            cosine_X[rows] = np.where(better_B, higher_B, cosine_B)
        return label_X, np.where(label_X >= 0, cosine_X.clip(-1, 1), np.nan).astype(np.float32)

    def neighbours(self, label_BS: np.ndarray) -> np.ndarray:
        """int32 [B, S x K]; -1 for those of no class."""
        found_BSK = np.where((label_BS >= 0)[:, :, None], self.neighbour_CK[np.maximum(label_BS, 0)], -1)
        return found_BSK.reshape(len(label_BS), -1)

    def best(self, query_BE: np.ndarray, own_B: np.ndarray, label_BY: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(label or -1, cosine or -inf) of the best of these classes for each image, its own left out."""
        cosine_BY = gathered_products(query_BE, self.vector_CE, np.maximum(label_BY, 0))
        cosine_BY[(label_BY < 0) | (label_BY == own_B[:, None])] = -np.inf
        at_B = cosine_BY.argmax(axis=1)
        image_B = np.arange(len(at_B))
        cosine_B = cosine_BY[image_B, at_B]
        return np.where(np.isfinite(cosine_B), label_BY[image_B, at_B], -1), cosine_B
