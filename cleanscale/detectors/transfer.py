"""Transfer: what makes a label wrong, learned in the verified classes, applied in all.

A logistic model from evidence to "the label is right". Evidence is relative to the class (`maths.evidence`), so what is
learned in some classes holds in those where nobody verified anything. How strongly it is regularised, and the
calibration of its probability, follow from class folds: whole verified classes held out, as the others are. In a class
with verification labels these say more of its other images (`own_labels`).

# N images, S signals
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cleanscale.detectors import own_labels
from cleanscale.detectors.base import Decision, Detector, Evidence
from cleanscale.detectors.own_labels import OwnLabels
from cleanscale.maths.calibration import fit_logistic, fit_platt, sigmoid
from cleanscale.maths.evidence import SIGNALS
from cleanscale.maths.keyed_random import class_fold_masks

log = logging.getLogger(__name__)

# Believed before any verification label is seen: the odds of the noisy label against the best other class.
BELIEVED = "margin"
PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0)
UNCHOSEN_PENALTY = 300.0  # where there is a single verified class and nothing to choose by
LEAST_SLOPE = 0.1  # calibration on few labels must not turn the ranking around


@dataclass(frozen=True)
class Transfer:
    """P(right) = sigmoid(slope * (margin + standardised signals . coefficient + intercept) + shift), then `own`.

    With no verification labels at all the coefficients are zero: an unsupervised rule, which calls a label wrong when
    another class is more probable out of fold. Its probabilities are the classifier's and calibrated by nothing.
    """

    names: list[str]
    mean_S: list[float]
    scale_S: list[float]
    coefficient_S: list[float]
    intercept: float
    slope: float = 1.0
    shift: float = 0.0
    verified: int = 0
    own: OwnLabels | None = None

    def logit(self, evidence: Evidence) -> np.ndarray:
        """float64 [N], before calibration and without the labels of the image's own class."""
        value_NS = (signal_matrix(evidence, self.names) - self.mean_S) * self.scale_S
        return evidence.signal(BELIEVED) + value_NS @ np.asarray(self.coefficient_S) + self.intercept

    def decide(self, evidence: Evidence) -> Decision:
        logit_N = self.slope * self.logit(evidence) + self.shift
        if self.own is not None:
            logit_N = self.own.applied(logit_N, evidence)
        probability_N = sigmoid(logit_N).astype(np.float32)
        return Decision(probability_N, probability_N, probability_N < 0.5)

    def to_dict(self) -> dict[str, Any]:
        return asdict(replace(self, own=None)) | {"own": self.own and self.own.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Transfer:
        own = OwnLabels.from_dict(values["own"]) if values.get("own") else None
        return cls(**{**values, "own": own})


def signal_matrix(evidence: Evidence, names: Sequence[str]) -> np.ndarray:
    """float64 [N, S]"""
    return np.stack([evidence.signal(name).astype(np.float64) for name in names], axis=1)


def fit(
    verified: Evidence, verified_N: np.ndarray, *, class_folds: int, seed: int, names: Sequence[str] = SIGNALS
) -> Transfer:
    """The evidence model. `names`: the signals it looks at."""
    if len(verified) == 0:
        log.warning(
            "no verification labels: 'transfer' falls back to an unsupervised rule (the label is wrong when another "
            "class is more probable out of fold); verify some labels of some classes to learn what is wrong here"
        )
        zeros = [0.0] * len(names)
        return Transfer(list(names), zeros, zeros, zeros, 0.0)
    right_N = np.asarray(verified_N) == 1
    if right_N.all() or not right_N.any():
        log.warning(
            "all %d verified labels are %s: 'transfer' can learn little from them; verify labels that look wrong as "
            "well as labels that look right",
            len(right_N),
            "right" if right_N.all() else "wrong",
        )
    folds = class_fold_masks(verified.label_N, class_folds, seed)
    fitted = [_held_out_logits(verified, right_N, folds, penalty, names) for penalty in PENALTIES] if folds else []
    losses = [float(np.logaddexp(0, np.where(right_N, -logit_N, logit_N)).mean()) for logit_N in fitted]
    penalty = PENALTIES[int(np.argmin(losses))] if losses else UNCHOSEN_PENALTY
    model = _fit_model(verified, right_N, penalty, names)
    if not fitted or right_N.all() or not right_N.any():
        return model
    held_out_N = fitted[int(np.argmin(losses))]
    slope, shift = fit_platt(held_out_N, right_N)
    slope = max(slope, LEAST_SLOPE)
    return replace(model, slope=slope, shift=shift, own=own_labels.fit(verified, right_N, slope * held_out_N + shift))


def _fit_model(verified: Evidence, right_N: np.ndarray, penalty: float, names: Sequence[str]) -> Transfer:
    value_NS = signal_matrix(verified, names)
    mean_S, spread_S = value_NS.mean(axis=0), value_NS.std(axis=0)
    scale_S = np.divide(1.0, spread_S, out=np.zeros_like(spread_S), where=spread_S > 1e-6)
    coefficient_S, intercept = fit_logistic(
        (value_NS - mean_S) * scale_S, right_N, penalty=penalty, offset_N=verified.signal(BELIEVED)
    )
    return Transfer(
        list(names), mean_S.tolist(), scale_S.tolist(), coefficient_S.tolist(), intercept, verified=len(right_N)
    )


def _held_out_logits(
    verified: Evidence, right_N: np.ndarray, folds: list[np.ndarray], penalty: float, names: Sequence[str]
) -> np.ndarray:
    """float64 [N]: logits of each class fold by a model that saw none of its classes."""
    logit_N = np.empty(len(right_N))
    for left_N in folds:
        model = _fit_model(verified.select(~left_N), right_N[~left_N], penalty, names)
        logit_N[left_N] = model.logit(verified.select(left_N))
    return logit_N


DETECTOR = Detector("transfer", fit, Transfer.from_dict, SIGNALS)
