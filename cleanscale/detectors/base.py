"""What a detector gets and gives: evidence in, decisions out.

A detector is fitted on the evidence of verified images (out of fold: whatever in it was fitted on verification labels
must be cross-fitted over class folds) and then decides about any images. The fitted one is numbers only, and goes
through `to_dict` and `from_dict` to a file and to tasks.

# N images
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cleanscale.errors import DataError
from cleanscale.maths.calibration import sigmoid


@dataclass(frozen=True)
class Evidence:
    """Signals about images and their noisy labels; `maths.evidence` says how most of them are made."""

    row_N: np.ndarray  # int64
    label_N: np.ndarray  # int32: noisy labels, gaps allowed
    signals: dict[str, np.ndarray]  # each float32 [N]
    feature_ND: np.ndarray | None = None  # float: what a class's own labels are learned from, where it is at hand

    def __len__(self) -> int:
        return len(self.row_N)

    def select(self, chosen: np.ndarray) -> Evidence:
        """The evidence of some images, by mask or by position."""
        return Evidence(
            self.row_N[chosen],
            self.label_N[chosen],
            {name: value[chosen] for name, value in self.signals.items()},
            None if self.feature_ND is None else self.feature_ND[chosen],
        )

    def signal(self, name: str, *, missing: bool = False) -> np.ndarray:
        """float32 [N]. missing: NaN is allowed, for what is not known of some images.

        Raises DataError when the evidence has no such signal or it is not finite.
        """
        if name not in self.signals:
            raise DataError(
                f"the evidence has no signal '{name}', only {sorted(self.signals)}; expected what the detector needs; "
                "make the evidence again with this detector named"
            )
        value_N = self.signals[name]
        if not (missing or np.isfinite(value_N).all()):
            raise DataError(
                f"signal '{name}' is not finite for {int((~np.isfinite(value_N)).sum())} of {len(value_N)} images; "
                "expected numbers; make the features and the evidence again"
            )
        return value_N


@dataclass(frozen=True)
class Decision:
    """What a detector says."""

    score_N: np.ndarray  # float32: higher where the label is more likely right; the scale is the detector's own
    probability_correct_N: np.ndarray | None  # float32 in [0, 1], calibrated on verification labels; None: has none
    mislabeled_N: np.ndarray  # bool


class FittedDetector(Protocol):
    def decide(self, evidence: Evidence) -> Decision: ...

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts: what JSON can hold."""
        ...


class Fit(Protocol):
    def __call__(self, verified: Evidence, verified_N: np.ndarray, *, class_folds: int, seed: int) -> FittedDetector:
        """Fitted on verified images; `verified_N` holds 1 for right and 0 for wrong. No images at all are allowed."""
        ...


@dataclass(frozen=True)
class Detector:
    """An entry of the registry."""

    name: str
    fit: Fit
    from_dict: Callable[[dict[str, Any]], FittedDetector]
    signals: Sequence[str]  # what its evidence must hold
    own_signals: bool = False  # made by `cleanscale.signals`, where it is named; those of others every run has


@dataclass(frozen=True)
class ScoreRule:
    """Right iff one signal is at least `threshold`; probability by a logistic curve, where there is one."""

    signal: str
    threshold: float
    slope: float | None = None
    intercept: float | None = None

    def decide(self, evidence: Evidence) -> Decision:
        score_N = evidence.signal(self.signal)
        probability_N = None
        if self.slope is not None and self.intercept is not None:
            probability_N = sigmoid(self.slope * score_N + self.intercept).astype(np.float32)
        return Decision(score_N.astype(np.float32), probability_N, score_N < self.threshold)

    def to_dict(self) -> dict[str, Any]:
        return {
            "signal": self.signal,
            "threshold": self.threshold,
            "slope": self.slope,
            "intercept": self.intercept,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ScoreRule:
        return cls(**values)


def positions_by_class(label_N: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(label, positions) of each class, in order."""
    order_N = np.argsort(label_N, kind="stable")
    label_C, start_C = np.unique(label_N[order_N], return_index=True)
    return list(zip(label_C.tolist(), np.split(order_N, start_C[1:]), strict=True))
