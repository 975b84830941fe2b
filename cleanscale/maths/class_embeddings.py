"""Class embeddings by label, and the cosine that is CleanNet's relevance.

# N images, C classes with references, E embedding width
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassEmbeddings:
    """label_C sorted; embedding_CE float32 of length 1."""

    label_C: np.ndarray
    embedding_CE: np.ndarray

    def of(self, label_N: np.ndarray) -> np.ndarray:
        """float32 [N, E]; NaN for classes without references."""
        place_N = np.minimum(np.searchsorted(self.label_C, label_N), len(self.label_C) - 1)
        found_N = self.label_C[place_N] == label_N
        return np.where(found_N[:, None], self.embedding_CE[place_N], np.nan).astype(np.float32)


def cosine(query_NE: np.ndarray, class_NE: np.ndarray) -> np.ndarray:
    """float32 [N] in [-1, 1] of vectors of length 1."""
    return np.einsum("ne,ne->n", query_NE, class_NE).clip(-1, 1)
