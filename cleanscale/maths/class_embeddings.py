"""Class embeddings by label, and the cosine that is CleanNet's relevance.

# N images, C classes with references, E embedding width
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cleanscale.maths.compared_classes import blocks_of_rows


@dataclass(frozen=True)
class ClassEmbeddings:
    """label_C sorted; embedding_CE float32 of length 1."""

    label_C: np.ndarray
    embedding_CE: np.ndarray

    def of(self, label_N: np.ndarray) -> np.ndarray:
        """float32 [N, E]; NaN for classes without references."""
        return gathered(self.label_C, self.embedding_CE, label_N)

    def nearest_other(self, query_NE: np.ndarray, label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(label or -1, cosine) of the class but the own that is nearest to each image, compared with all of them."""
        near_N = np.full(len(label_N), -1, np.int64)
        cosine_N = np.full(len(label_N), -np.inf, np.float32)
        for rows in blocks_of_rows(len(label_N), len(self.label_C)):
            cosine_BC = query_NE[rows] @ self.embedding_CE.T
            cosine_BC[label_N[rows][:, None] == self.label_C] = -np.inf
            at_B = cosine_BC.argmax(axis=1)
            cosine_N[rows] = cosine_BC[np.arange(len(at_B)), at_B]
            near_N[rows] = np.where(np.isfinite(cosine_N[rows]), self.label_C[at_B], -1)
        return near_N, cosine_N.clip(max=1)


def gathered(label_C: np.ndarray, vector_CE: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """float32 [N, E]: the vectors of these classes; NaN for those that label_C (sorted) has not."""
    if not len(label_C):
        return np.full((len(label_N), vector_CE.shape[1]), np.nan, np.float32)
    at_N = np.minimum(np.searchsorted(label_C, label_N), len(label_C) - 1)
    found_N = label_C[at_N] == label_N
    return np.where(found_N[:, None], vector_CE[at_N], np.nan).astype(np.float32)


def unit(vector_XE: np.ndarray) -> np.ndarray:
    """float32 [X, E] of length 1; zeros stay."""
    vector_XE = np.asarray(vector_XE, np.float32)
    return vector_XE / np.maximum(np.linalg.norm(vector_XE, axis=1, keepdims=True), 1e-12)


def cosine(query_NE: np.ndarray, class_NE: np.ndarray) -> np.ndarray:
    """float32 [N] in [-1, 1] of vectors of length 1."""
    return np.einsum("ne,ne->n", query_NE, class_NE).clip(-1, 1)


LIKELY = float(np.log(0.5))  # of the class that the classifier finds: more than all others together
CLEARLY = 0.05  # of cosine


def suggested(
    found_N: np.ndarray,
    log_probability_N: np.ndarray,
    found_relevance_N: np.ndarray,
    near_N: np.ndarray,
    near_relevance_N: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(label or -1, relevance) of the best other class of each image, out of two opinions; relevance NaN: not known.

    found: by the out-of-fold classifier, with its log-probability. near: of largest relevance among all other classes.
    The second stands where the classifier is not sure and it is clearly more relevant. In truth wrong images of four
    data sets, from 20 to 1000 classes, that is right 0.7 to 12.7 points more often than the first alone.
    """
    near_relevance_N = np.nan_to_num(near_relevance_N, nan=-np.inf)
    clearly_N = near_relevance_N > np.nan_to_num(found_relevance_N, nan=-np.inf) + CLEARLY
    near_is_it_N = (near_N >= 0) & ((found_N < 0) | (clearly_N & (log_probability_N < LIKELY)))
    label_N = np.where(near_is_it_N, near_N, found_N)
    return label_N, np.where(near_is_it_N, near_relevance_N, found_relevance_N).astype(np.float32)
