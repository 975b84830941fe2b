"""How much two classes look like one thing under two names, from their reference sets.

# K, L references of the two classes, D width
"""

from __future__ import annotations

import numpy as np

from cleanscale.maths.references import ReferenceSets


def overlap(first_KD: np.ndarray, second_LD: np.ndarray) -> float:
    """In [0, 1]: how often the reference nearest to a reference is one of the other class, of how often it would be if
    all were of one class; the less of both directions."""
    if min(len(first_KD), len(second_LD)) == 0 or len(first_KD) + len(second_LD) < 3:
        return 0.0
    together_MD = np.concatenate([first_KD, second_LD]).astype(np.float32)
    square_M = np.square(together_MD).sum(axis=1)
    distance_MM = square_M[:, None] + square_M - 2 * together_MD @ together_MD.T
    np.fill_diagonal(distance_MM, np.inf)
    of_second_M = np.arange(len(together_MD)) >= len(first_KD)
    crossed_M = of_second_M[distance_MM.argmin(axis=1)] != of_second_M
    others = len(together_MD) - 1
    shares = [
        crossed_M[~of_second_M].mean() / (len(second_LD) / others),
        crossed_M[of_second_M].mean() / (len(first_KD) / others),
    ]
    return float(min(1.0, *shares))


def overlaps(sets: ReferenceSets, label_P: np.ndarray, other_P: np.ndarray) -> np.ndarray:
    """float32 [P]: `overlap` of pairs of classes; 0 where a class has no references."""
    pairs = zip(label_P.tolist(), other_P.tolist(), strict=True)
    return np.array([overlap(sets.of(a), sets.of(b)) for a, b in pairs], np.float32)


def sureness(overlap_P: np.ndarray, confusion_P: np.ndarray) -> np.ndarray:
    """float32 [P] in [0, 1]: both must speak for it, the references and the classifier that cannot tell the images."""
    return np.sqrt(overlap_P * confusion_P).astype(np.float32)
