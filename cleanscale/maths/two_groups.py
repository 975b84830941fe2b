"""Splitting numbers into two groups.

# N values
"""

from __future__ import annotations

import numpy as np


def best_split(value_N: np.ndarray) -> float:
    """The threshold that parts values into two groups with the smallest sum of squares within (two-means in one
    dimension, exactly, in O(N log N)): midway between the groups. N >= 1; equal values all lie on or below it.
    """
    value_N = np.sort(np.asarray(value_N, np.float64))
    size_K = np.arange(1, len(value_N))
    sum_K = np.cumsum(value_N)[:-1]
    total = value_N.sum()
    # The sum of squares within is that of all, less what lies between: maximise the part that is subtracted.
    between_K = sum_K**2 / size_K + (total - sum_K) ** 2 / (len(value_N) - size_K)
    between_K[np.diff(value_N) == 0] = -np.inf  # equal values stay together
    if not np.isfinite(between_K).any():
        return float(value_N[-1])
    best = int(between_K.argmax())
    return float((value_N[best] + value_N[best + 1]) / 2)
