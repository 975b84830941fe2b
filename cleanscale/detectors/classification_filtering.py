"""Classification filtering (CleanNet, section 5): a label is right when it is among the classifier's k best.

The classifier is out of fold, and k is the one that errs least on the verification labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cleanscale.detectors.base import Decision, Detector, Evidence
from cleanscale.maths.calibration import fit_platt, sigmoid
from cleanscale.maths.thresholds import best_threshold


@dataclass(frozen=True)
class TopK:
    """Right iff fewer than `k` classes are more probable than the noisy label."""

    k: int
    slope: float | None = None
    intercept: float | None = None

    def decide(self, evidence: Evidence) -> Decision:
        score_N = -evidence.signal("log_rank")
        probability_N = None
        if self.slope is not None and self.intercept is not None:
            probability_N = sigmoid(self.slope * score_N + self.intercept).astype(np.float32)
        return Decision(score_N, probability_N, score_N < _threshold(self.k))

    def to_dict(self) -> dict[str, Any]:
        return {"k": self.k, "slope": self.slope, "intercept": self.intercept}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TopK:
        return cls(**values)


def fit(verified: Evidence, verified_N: np.ndarray, *, class_folds: int, seed: int) -> TopK:
    """Without verification labels k is 1."""
    if len(verified) == 0:
        return TopK(1)
    score_N, right_N = -verified.signal("log_rank"), np.asarray(verified_N) == 1
    threshold, _ = best_threshold(score_N, right_N, verified.label_N, prefer=_threshold(1))
    accepted_rank = np.expm1(np.clip(-threshold, 0.0, 40.0))  # the class's own prediction, rank 0, is always accepted
    return TopK(int(np.floor(accepted_rank + 1e-3)) + 1, *fit_platt(score_N, right_N))


def _threshold(k: int) -> float:
    """Between -log1p(rank) of rank k - 1, which is accepted, and of rank k."""
    return -float(np.log1p(k - 0.5))


DETECTOR = Detector("classification_filtering", fit, TopK.from_dict, ("log_rank",))
