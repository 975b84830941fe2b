"""Fitting detectors that compare one signal with a threshold chosen on verification labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cleanscale.detectors.base import Detector, Evidence, ScoreRule
from cleanscale.maths.calibration import fit_platt
from cleanscale.maths.thresholds import best_threshold


def best_signal(verified: Evidence, right_N: np.ndarray, signals: Sequence[str], *, prefer: float) -> tuple[str, float]:
    """(signal, threshold) that err least on the verified images, mean over classes; of equals the first."""
    label_N = verified.label_N
    found = [best_threshold(verified.signal(name), right_N, label_N, prefer=prefer) for name in signals]
    best = int(np.argmin([error for _, error in found]))
    return signals[best], found[best][0]


def threshold_detector(name: str, signal: str, *, unverified_threshold: float) -> Detector:
    """Right iff `signal` >= threshold; the threshold that errs least on the verified images, mean over classes.

    One threshold from one signal, which itself saw no verification label, needs no class folds. Without verification
    labels it is `unverified_threshold`, and there is no probability. Verified images without the signal are left out: a
    signal that is cross-fitted over class folds has none where one class is verified.
    """

    def fit(verified: Evidence, verified_N: np.ndarray, *, class_folds: int, seed: int) -> ScoreRule:
        score_N = verified.signal(signal, missing=True)
        known_N = np.isfinite(score_N)
        if not known_N.any():
            return ScoreRule(signal, unverified_threshold)
        score_N, right_N = score_N[known_N], np.asarray(verified_N)[known_N] == 1
        threshold, _ = best_threshold(score_N, right_N, verified.label_N[known_N], prefer=unverified_threshold)
        return ScoreRule(signal, threshold, *fit_platt(score_N, right_N))

    return Detector(name, fit, ScoreRule.from_dict, (signal,))
