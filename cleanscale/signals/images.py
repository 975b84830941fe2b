"""Signals that a detector makes from features, beside those of the evidence stage that all runs have.

They cost more than the rest, so only the detectors that are named (`--detector.name`, `--detector.compare`) make them.
What was fitted on verification labels is cross-fitted: a verified image's value comes from a model that did not see
its verification label, so that thresholds, choices and probabilities can be fitted on these values.

# N images, D feature width, C classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cleanscale.schema import UNSEEN


@dataclass(frozen=True)
class Images:
    """Some images with what features-based detectors look at."""

    row_N: np.ndarray  # int64
    label_N: np.ndarray  # int: noisy labels, gaps allowed
    feature_ND: np.ndarray  # float16 or float32
    verified_N: np.ndarray  # int8: 1 right, 0 wrong, -1 unseen

    def __len__(self) -> int:
        return len(self.row_N)

    def select(self, chosen: np.ndarray | slice) -> Images:
        """Some of them, by mask, position or slice."""
        return Images(self.row_N[chosen], self.label_N[chosen], self.feature_ND[chosen], self.verified_N[chosen])

    @classmethod
    def concatenate(cls, pieces: list[Images]) -> Images:
        """Pieces as one; at least one piece."""
        return cls(
            np.concatenate([p.row_N for p in pieces]),
            np.concatenate([p.label_N for p in pieces]),
            np.concatenate([p.feature_ND for p in pieces]),
            np.concatenate([p.verified_N for p in pieces]),
        )

    @property
    def looked_N(self) -> np.ndarray:
        """bool [N]: somebody verified the image."""
        return self.verified_N != UNSEEN


class Probabilities(Protocol):
    """Out-of-fold heads (`maths.evidence.OutOfFold`)."""

    def log_probability(self, feature_ND: np.ndarray, row_N: np.ndarray) -> np.ndarray:
        """float32 [N, C]: each row by the head that has not seen it."""
        ...


class FeatureSignals(Protocol):
    """Makes a detector's signals when all images are at hand; the stage makes the same shard by shard."""

    def of_arrays(self, images: Images, centre_D: np.ndarray, heads: Probabilities, seed: int) -> dict[str, np.ndarray]:
        """float32 [N] of each signal; NaN where the detector has nothing to learn from. centre_D: mean feature."""
        ...
