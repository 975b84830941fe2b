"""MLP, kNN, SVM, label propagation, label spreading, DRAE (CleanNet, Table 2): fitted in every class anew.

One rule for all classes on top of the values that each class's model gives; `cleanscale.signals` makes these.

# N images
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cleanscale.detectors.base import Decision, Detector, Evidence
from cleanscale.detectors.score_rules import best_signal
from cleanscale.maths.calibration import fit_platt, sigmoid

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PerClassRule:
    """Right iff the value of the class's model is at least `threshold`. In a class without a model everything is right,
    with the share of all verified labels that are right as its probability, as naive says.
    """

    signal: str
    threshold: float
    slope: float | None = None
    intercept: float | None = None
    share_right: float | None = None

    def decide(self, evidence: Evidence) -> Decision:
        value_N = evidence.signal(self.signal, missing=True)
        modelled_N = np.isfinite(value_N)
        if self.slope is None or self.intercept is None:
            score_N = np.where(modelled_N, value_N - self.threshold, 0.0)
            return Decision(score_N.astype(np.float32), None, modelled_N & (value_N < self.threshold))
        probability_N = np.full(len(evidence), self.share_right, np.float32)
        probability_N[modelled_N] = sigmoid(self.slope * value_N[modelled_N] + self.intercept)
        return Decision(probability_N, probability_N, modelled_N & (value_N < self.threshold))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PerClassRule:
        return cls(**values)


@dataclass(frozen=True)
class ByClass:
    """A method that is fitted in every class anew (`cleanscale.signals` does it).

    choices: values of its one hyperparameter, each of which makes a signal. border: where these values divide by
    themselves. A supervised method's choice and threshold, the same in all classes, are those that err least on the
    verified images (cross-fitted values; mean over classes). An unsupervised one decides at `border`. Either has a
    probability where images are verified.
    """

    name: str
    choices: tuple[float, ...]
    border: float
    supervised: bool = True

    @property
    def signals(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{choice:g}" for choice in self.choices)

    def fit(self, verified: Evidence, verified_N: np.ndarray, *, class_folds: int, seed: int) -> PerClassRule:
        right_N = np.asarray(verified_N) == 1
        modelled_N = np.isfinite(verified.signal(self.signals[0], missing=True))
        if not modelled_N.any():
            if self.supervised:
                log.warning(
                    "no class has two right and two wrong verified images: '%s' has nothing to learn from and calls "
                    "nothing wrong; verify more labels of a class, those that look wrong too",
                    self.name,
                )
            return PerClassRule(self.signals[0], self.border)
        used, right_V = verified.select(modelled_N), right_N[modelled_N]
        signal, threshold = self.signals[0], self.border
        if self.supervised:
            signal, threshold = best_signal(used, right_V, self.signals, prefer=self.border)
        slope, intercept = fit_platt(used.signal(signal), right_V)
        return PerClassRule(signal, threshold, slope, intercept, float(right_N.mean()))

    @property
    def detector(self) -> Detector:
        return Detector(self.name, self.fit, PerClassRule.from_dict, self.signals, own_signals=True)


METHODS = {
    method.name: method
    for method in (
        ByClass("mlp", choices=(0.01, 0.1, 1.0), border=0.5),  # weight of the squared weights; P(right)
        ByClass("knn", choices=(5, 10, 20, 40), border=0.5),  # neighbours; share of votes
        ByClass("svm", choices=(1, 3, 10), border=0.0),  # C; signed distance
        ByClass("label_propagation", choices=(7, 15, 30), border=0.5),  # neighbours; share that arrives
        ByClass("label_spreading", choices=(7, 15, 30), border=0.5),
        ByClass("drae", choices=(0,), border=0.0, supervised=False),  # no choice; log of split over error
    )
}
