"""Thresholds chosen on verification labels, by an exact sweep."""

from __future__ import annotations

import numpy as np


def best_threshold(
    score_N: np.ndarray, right_N: np.ndarray, class_N: np.ndarray, *, prefer: float | None = None
) -> tuple[float, float]:
    """(threshold, error) that minimise the mean over classes of the error of "right iff score >= threshold".

    Every threshold is considered, in O(N log N). Of equally good ones: the nearest to `prefer`, otherwise the middle
    of the widest gap. Scores must be finite; N >= 1.
    """
    order = np.argsort(score_N, kind="stable")
    score_N = np.asarray(score_N, np.float64)[order]
    right_N = np.asarray(right_N, bool)[order]
    _, position_N, size_C = np.unique(np.asarray(class_N)[order], return_inverse=True, return_counts=True)
    weight_N = 1 / (len(size_C) * size_C[position_N])
    # error_G[g]: everything below the g-th distinct score is called wrong
    starts = np.flatnonzero(np.diff(score_N, prepend=-np.inf))
    change_N = np.cumsum(np.where(right_N, weight_N, -weight_N))
    error_G = weight_N[~right_N].sum() + np.concatenate([[0.0], change_N[np.append(starts[1:] - 1, len(score_N) - 1)]])
    value_V = score_N[starts]
    low_G = np.concatenate([[-np.inf], value_V])  # thresholds in (low, high] give error_G
    high_G = np.concatenate([value_V, [np.inf]])
    best = np.flatnonzero(error_G <= error_G.min() + 1e-12)
    if prefer is not None:
        at = best[np.maximum(np.maximum(low_G[best] - prefer, prefer - high_G[best]), 0).argmin()]
        wanted = prefer
    else:
        gap_B = np.where(np.isfinite(high_G[best] - low_G[best]), high_G[best] - low_G[best], -1)
        at = best[gap_B.argmax()]
        wanted = (low_G[at] + high_G[at]) / 2
    return _inside(wanted, low_G[at], high_G[at]), float(error_G[at])


def _inside(wanted: float, low: float, high: float) -> float:
    """A float in (low, high] near `wanted` that is also above `low` when it is compared in float32."""
    if low < np.float32(wanted) <= high:
        return float(np.float32(wanted))
    return float(high if np.isfinite(high) else np.nextafter(np.float32(low), np.float32(np.inf)))


def choose_delta(cosine_N: np.ndarray, verified_N: np.ndarray, label_N: np.ndarray, *, rho: float = 0.1) -> float:
    """CleanNet's delta (Eq. 11): one for all classes, from cosines cross-fitted over class folds (NaN: no cosine).

    Images without a verification label or without a cosine are left out. Among equally good deltas, and where nothing
    is verified, the one nearest to the margin `rho`, which is where training pushes the wrong ones below.
    """
    used_N = (np.asarray(verified_N) >= 0) & np.isfinite(cosine_N)
    if not used_N.any():
        return rho
    right_N = np.asarray(verified_N)[used_N] == 1
    return best_threshold(np.asarray(cosine_N)[used_N], right_N, np.asarray(label_N)[used_N], prefer=rho)[0]
