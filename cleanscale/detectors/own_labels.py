"""What a class's own verification labels say of its other images, on top of what is learned across classes.

In every class with labels of both kinds a linear border between its right and its wrong images (ridge regression, whose
leave-one-out values have a closed form), then one logistic model for all such classes: how much to believe of the
border, given what the evidence says already. A class that nobody verified keeps what was learned in the others.

# V verified images, K of them in one class, M classes with a border, D feature width, N images
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from cleanscale.detectors.base import Evidence, positions_by_class
from cleanscale.maths.calibration import fit_logistic
from cleanscale.maths.class_embeddings import unit

LEAST_OF_A_KIND = 2  # verified images of a class that are right, and that are wrong: fewer show no border
RIDGE = 1.0  # of images of length 1 around a common centre; 0.3 and 3 are alike (docs/log.md)
# Square of the number, the same in all images, whose weight is the intercept: the smaller, the more an intercept costs.
# With few labels of a class the leave-one-out intercept leans away from what was left out.
CONSTANT = 0.2
PENALTY = 10.0  # on what differs from believing the evidence alone


@dataclass(frozen=True)
class Borders:
    """The border of each class that has one: unit(feature - centre) . weight + intercept, about 1 where right."""

    label_M: np.ndarray  # int64, sorted
    centre_D: np.ndarray  # float32: mean feature of verified images
    weight_MD: np.ndarray  # float32
    intercept_M: np.ndarray  # float32

    def values(self, feature_ND: np.ndarray, label_N: np.ndarray) -> np.ndarray:
        """float64 [N]; NaN in classes without a border."""
        value_N = np.full(len(label_N), np.nan)
        if not len(self.label_M):
            return value_N
        at_N = np.minimum(np.searchsorted(self.label_M, label_N), len(self.label_M) - 1)
        found_N = np.flatnonzero(self.label_M[at_N] == label_N)
        at_X = at_N[found_N]
        unit_XD = unit(feature_ND[found_N].astype(np.float32) - self.centre_D)
        value_N[found_N] = np.einsum("xd,xd->x", unit_XD, self.weight_MD[at_X]) + self.intercept_M[at_X]
        return value_N

    def to_dict(self) -> dict[str, Any]:
        """Arrays as base64 of little-endian float32: as numbers of JSON they take three times the room."""
        arrays = {"centre": self.centre_D, "weight": self.weight_MD, "intercept": self.intercept_M}
        return {"label": self.label_M.tolist()} | {name: as_text(array) for name, array in arrays.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Borders:
        label_M = np.asarray(values["label"], np.int64)
        centre_D, weight_X, intercept_M = (of_text(values[name]) for name in ("centre", "weight", "intercept"))
        return cls(label_M, centre_D, weight_X.reshape(len(label_M), -1), intercept_M)


@dataclass(frozen=True)
class OwnLabels:
    """log-odds of right = logit + (logit, border's value) . weight_2 + intercept, in classes that have a border."""

    borders: Borders
    weight_2: list[float]
    intercept: float

    def applied(self, logit_N: np.ndarray, evidence: Evidence) -> np.ndarray:
        """float64 [N]: log-odds by the evidence, corrected where the image's class has a border."""
        if evidence.feature_ND is None:
            return logit_N
        value_N = self.borders.values(evidence.feature_ND, evidence.label_N)
        corrected_N = logit_N + np.stack([logit_N, value_N], axis=1) @ np.asarray(self.weight_2) + self.intercept
        return np.where(np.isfinite(value_N), corrected_N, logit_N)

    def to_dict(self) -> dict[str, Any]:
        return {"borders": self.borders.to_dict(), "weight": self.weight_2, "intercept": self.intercept}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OwnLabels:
        return cls(Borders.from_dict(values["borders"]), values["weight"], values["intercept"])


def fit(verified: Evidence, right_V: np.ndarray, logit_V: np.ndarray) -> OwnLabels | None:
    """None where there are no features, no class has labels of both kinds, or borders do not help.

    logit_V: log-odds of verified images by models that have seen no label of their class, calibrated.
    """
    if verified.feature_ND is None:
        return None
    borders, left_out_V = fit_borders(verified.feature_ND, verified.label_N, right_V)
    known_V = np.isfinite(left_out_V)
    if not known_V.any():
        return None
    seen_V2 = np.stack([logit_V, left_out_V], axis=1)[known_V]
    spread_2 = np.maximum(seen_V2.std(axis=0), 1e-6)
    weight_2, intercept = fit_logistic(seen_V2 / spread_2, right_V[known_V], penalty=PENALTY, offset_N=logit_V[known_V])
    if weight_2[1] <= 0:  # with few labels of a class a border says nothing, or the opposite of what was left out
        return None
    return OwnLabels(borders, (weight_2 / spread_2).tolist(), intercept)


def fit_borders(feature_VD: np.ndarray, label_V: np.ndarray, right_V: np.ndarray) -> tuple[Borders, np.ndarray]:
    """(the borders, float64 [V]: each image's value by the border that the others of its class make; NaN without)."""
    left_out_V = np.full(len(label_V), np.nan)
    centre_D = feature_VD.mean(axis=0, dtype=np.float64).astype(np.float32)
    labels, weights, intercepts = [], [], []
    for label, at_K in positions_by_class(label_V):
        right_K = right_V[at_K]
        if min(right_K.sum(), (~right_K).sum()) < LEAST_OF_A_KIND:
            continue
        unit_KD = unit(feature_VD[at_K].astype(np.float32) - centre_D)
        weight_D, intercept, left_out_V[at_K] = ridge_border(unit_KD, right_K)
        labels.append(label)
        weights.append(weight_D)
        intercepts.append(intercept)
    weight_MD = np.asarray(weights, np.float32).reshape(len(labels), feature_VD.shape[1])
    return Borders(np.asarray(labels, np.int64), centre_D, weight_MD, np.asarray(intercepts, np.float32)), left_out_V


def ridge_border(unit_KD: np.ndarray, right_K: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """(weight_D, intercept, leave-one-out values [K]) of the ridge regression of +1 (right) and -1 (wrong).

    In its dual form, K x K: target - a / diagonal of the inverse is what is predicted without the image itself.
    """
    target_K = np.where(right_K, 1.0, -1.0)
    unit_KD = unit_KD.astype(np.float64)
    gram_KK = unit_KD @ unit_KD.T + CONSTANT
    inverse_KK = np.linalg.inv(gram_KK + RIDGE * np.eye(len(gram_KK)))
    dual_K = inverse_KK @ target_K
    return dual_K @ unit_KD, CONSTANT * float(dual_K.sum()), target_K - dual_K / np.diag(inverse_KK)


def as_text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def of_text(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
