"""A label is wrong when the out-of-fold prediction is another class. Learns nothing from verification labels."""

from __future__ import annotations

import numpy as np

from cleanscale.detectors.base import Detector, Evidence, ScoreRule
from cleanscale.maths.calibration import fit_platt


def fit(verified: Evidence, verified_N: np.ndarray, *, class_folds: int, seed: int) -> ScoreRule:
    """The rule is fixed; only its probability is fitted, on verification labels."""
    if len(verified) == 0:
        return ScoreRule("margin", 0.0)
    return ScoreRule("margin", 0.0, *fit_platt(verified.signal("margin"), np.asarray(verified_N) == 1))


DETECTOR = Detector("prediction_disagrees", fit, ScoreRule.from_dict, ("margin",))
