"""Transfer: what makes a label wrong, learned in the verified classes, applied in all.

A logistic model from evidence to "the label is right". Evidence is relative to the class (`maths.evidence`), so what is
learned in some classes holds in those where nobody verified anything. How strongly it is regularised, and the
calibration of its probability, follow from class folds: whole verified classes held out, as the others are. Calibration
also weighs the model against CleanNet's cosine, where there is one: what heads say of a class of a dozen images is
worth little, and a comparison with reference sets sees what they miss. In a class with verification labels these say
more of its other images (`own_labels`).

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
# Not one of the signals: their common penalty is chosen for twenty that say much the same, and leaves it too little.
COSINE = "cleannet_cosine"
COSINE_PENALTY = 0.3  # on what differs from believing the evidence alone; 0.1 and 1 are alike (docs/log.md)
COSINE_GAIN = 1.0  # of log-likelihood, which a weight must bring to be kept (AIC): with few labels any brings a little


@dataclass(frozen=True)
class Transfer:
    """P(right) = sigmoid(slope * (margin + standardised signals . coefficient + intercept) + shift), then `own`.

    Before `own`, where CleanNet's cosine is known and helps: factor * log-odds + weight * cosine + shift.
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
    with_cosine: list[float] | None = None  # factor, weight, shift of the cosine's part
    verified: int = 0
    own: OwnLabels | None = None

    def logit(self, evidence: Evidence) -> np.ndarray:
        """float64 [N], before calibration and without the labels of the image's own class."""
        value_NS = (signal_matrix(evidence, self.names) - self.mean_S) * self.scale_S
        return evidence.signal(BELIEVED) + value_NS @ np.asarray(self.coefficient_S) + self.intercept

    def calibrated(self, logit_N: np.ndarray, evidence: Evidence) -> np.ndarray:
        """float64 [N]: log-odds of right from `logit` and, where it is known, CleanNet's cosine."""
        alone_N = self.slope * logit_N + self.shift
        if self.with_cosine is None or COSINE not in evidence.signals:
            return alone_N
        factor, weight, shift = self.with_cosine
        cosine_N = evidence.signal(COSINE, missing=True).astype(np.float64)
        return np.where(np.isfinite(cosine_N), factor * alone_N + weight * cosine_N + shift, alone_N)

    def decide(self, evidence: Evidence) -> Decision:
        logit_N = self.calibrated(self.logit(evidence), evidence)
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
    losses = [_loss(logit_N, right_N) for logit_N in fitted]
    penalty = PENALTIES[int(np.argmin(losses))] if losses else UNCHOSEN_PENALTY
    model = _fit_model(verified, right_N, penalty, names)
    if not fitted or right_N.all() or not right_N.any():
        return model
    held_out_N = fitted[int(np.argmin(losses))]
    slope, shift = fit_platt(held_out_N, right_N)
    model = replace(model, slope=max(slope, LEAST_SLOPE), shift=shift)
    model = replace(model, with_cosine=_with_cosine(verified, right_N, model.calibrated(held_out_N, verified)))
    return replace(model, own=own_labels.fit(verified, right_N, model.calibrated(held_out_N, verified)))


def _with_cosine(verified: Evidence, right_N: np.ndarray, alone_N: np.ndarray) -> list[float] | None:
    """Factor, weight and shift of log-odds = factor * alone + weight * cosine + shift.

    alone_N: calibrated log-odds by the evidence; both they and the cosines come from models that saw no verification
    label of the image's class. None where there is no cosine, where it says too little that is new, or where one of the
    two would count the wrong way round.
    """
    cosine_N = verified.signals.get(COSINE, np.full(len(verified), np.nan)).astype(np.float64)
    known_N = np.isfinite(cosine_N)
    if not known_N.any():
        return None
    alone_N, right_N = alone_N[known_N], right_N[known_N]
    both_N2 = np.stack([alone_N, cosine_N[known_N]], axis=1)
    centre_2, spread_2 = both_N2.mean(axis=0), np.maximum(both_N2.std(axis=0), 1e-9)
    more_2, shift = fit_logistic((both_N2 - centre_2) / spread_2, right_N, penalty=COSINE_PENALTY, offset_N=alone_N)
    more_2 = more_2 / spread_2
    shift = float(shift - more_2 @ centre_2)
    gain = _loss(alone_N, right_N) - _loss(alone_N + both_N2 @ more_2 + shift, right_N)
    factor, weight = 1 + float(more_2[0]), float(more_2[1])
    return [factor, weight, shift] if gain > COSINE_GAIN and factor > 0 and weight > 0 else None


def _loss(logit_N: np.ndarray, right_N: np.ndarray) -> float:
    """Sum over images of -log of the probability of what was found."""
    return float(np.logaddexp(0, np.where(right_N, -logit_N, logit_N)).sum())


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
