"""Naive baseline: every label is right. What the others must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cleanscale.detectors.base import Decision, Detector, Evidence


@dataclass(frozen=True)
class Naive:
    """Calls nothing wrong; its probability is the share of the verified labels that are right."""

    share_right: float | None

    def decide(self, evidence: Evidence) -> Decision:
        score_N = np.ones(len(evidence), np.float32)
        probability_N = None if self.share_right is None else np.full(len(evidence), self.share_right, np.float32)
        return Decision(score_N, probability_N, np.zeros(len(evidence), bool))

    def to_dict(self) -> dict[str, Any]:
        return {"share_right": self.share_right}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Naive:
        return cls(**values)


def fit(verified: Evidence, verified_N: np.ndarray, *, class_folds: int, seed: int) -> Naive:
    return Naive(float(np.mean(np.asarray(verified_N) == 1)) if len(verified) else None)


DETECTOR = Detector("naive", fit, Naive.from_dict, ())
