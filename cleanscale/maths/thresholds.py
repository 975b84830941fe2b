"""Thresholds chosen on verification labels, by an exact sweep."""

from __future__ import annotations

import numpy as np


def best_threshold(
    score_N: np.ndarray, right_N: np.ndarray, class_N: np.ndarray, *, prefer: float = 0.0
) -> tuple[float, float]:
    """(threshold, error) that minimise the mean over classes of the error of "right iff score >= threshold".

    Every threshold is considered, in O(N log N). Of equally good ones: the middle of the widest gap between
    scores; where only thresholds beyond all scores are best, the one nearest to `prefer`. Scores are finite; N >= 1.
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
    gap_G = np.where(np.isfinite(low_G) & np.isfinite(high_G), high_G - low_G, 0)
    at = best[gap_G[best].argmax()]
    wanted = (low_G[at] + high_G[at]) / 2 if gap_G[at] > 0 else prefer
    return _inside(float(wanted), float(low_G[at]), float(high_G[at])), float(error_G[at])


def _inside(wanted: float, low: float, high: float) -> float:
    """The float in (low, high] nearest `wanted` that is also above `low` when it is compared in float32."""
    above_low = np.nextafter(np.float32(low), np.float32(np.inf)) if np.isfinite(low) else low
    return float(min(max(np.float32(wanted), above_low), high))
