"""Neighbour vote: the share of an image's nearest images, over the whole collection, that carry its noisy label.

How many neighbours vote, and the share that a right label needs, are those that err least on the verified images.
`cleanscale.signals.neighbour_vote` counts the votes.
"""

from __future__ import annotations

import numpy as np

from cleanscale.detectors.base import Detector, Evidence, ScoreRule
from cleanscale.detectors.score_rules import best_signal
from cleanscale.maths.calibration import fit_platt

NEIGHBOURS = (5, 10, 20, 50, 100)
SIGNALS = tuple(f"neighbour_vote_{k}" for k in NEIGHBOURS)
UNVERIFIED = "neighbour_vote_20", 0.5  # signal and threshold where nothing is verified


def fit(verified: Evidence, verified_N: np.ndarray, *, class_folds: int, seed: int) -> ScoreRule:
    """Votes saw no verification label: one threshold from one signal needs no class folds."""
    if len(verified) == 0:
        return ScoreRule(*UNVERIFIED)
    right_N = np.asarray(verified_N) == 1
    signal, threshold = best_signal(verified, right_N, SIGNALS, prefer=UNVERIFIED[1])
    return ScoreRule(signal, threshold, *fit_platt(verified.signal(signal), right_N))


DETECTOR = Detector("neighbour_vote", fit, ScoreRule.from_dict, SIGNALS, own_signals=True)
