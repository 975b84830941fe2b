"""Confident learning (Northcutt et al. 2021) by the package cleanlab: an optional comparison, extra `compare`.

`cleanscale.signals.confident_learning` asks cleanlab; its verdict stands, and only a probability is fitted to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cleanscale.detectors.base import Decision, Detector, Evidence
from cleanscale.maths.calibration import fit_platt, sigmoid

ISSUE, QUALITY = "confident_learning_issue", "confident_learning_quality"


@dataclass(frozen=True)
class CleanlabRule:
    """Wrong iff cleanlab says so. Its score ranks what it calls wrong below the rest, each by cleanlab's quality."""

    slope: float | None = None
    intercept: float | None = None

    def decide(self, evidence: Evidence) -> Decision:
        score_N = score(evidence)
        probability_N = None
        if self.slope is not None and self.intercept is not None:
            probability_N = sigmoid(self.slope * score_N + self.intercept).astype(np.float32)
        return Decision(score_N, probability_N, evidence.signal(ISSUE) > 0.5)

    def to_dict(self) -> dict[str, Any]:
        return {"slope": self.slope, "intercept": self.intercept}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CleanlabRule:
        return cls(**values)


def score(evidence: Evidence) -> np.ndarray:
    return (evidence.signal(QUALITY) - evidence.signal(ISSUE)).astype(np.float32)


def fit(verified: Evidence, verified_N: np.ndarray, *, class_folds: int, seed: int) -> CleanlabRule:
    """The verdict is cleanlab's; only the probability is fitted, on verification labels."""
    if len(verified) == 0:
        return CleanlabRule()
    return CleanlabRule(*fit_platt(score(verified), np.asarray(verified_N) == 1))


DETECTOR = Detector("confident_learning", fit, CleanlabRule.from_dict, (ISSUE, QUALITY), own_signals=True)
