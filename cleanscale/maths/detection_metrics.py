"""How well wrong labels were found, how well probabilities are calibrated, and how often a classifier is right.

N images, C classes (of noisy labels), B bins, T thresholds. The positive class is always *wrong*: `wrong_N` is the
truth, `mislabeled_N` a detector's decision, and `score_N` its score, higher where the label is more likely *right*.
Errors and accuracies are in percent, areas and calibration errors in [0, 1]. What is not defined (no image, no wrong
image) is None, never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn import metrics


@dataclass(frozen=True)
class ClassCounts:
    """Images and wrong decisions of each class that has images: all that an error needs to know."""

    label_C: np.ndarray  # sorted class ids
    images_C: np.ndarray
    errors_C: np.ndarray

    @property
    def error_C(self) -> np.ndarray:
        """Error of each class in percent."""
        return 100.0 * self.errors_C / self.images_C


class Curve(NamedTuple):
    """A detector's curve over all thresholds: false-positive and true-positive rate, or recall and precision."""

    x_T: np.ndarray
    y_T: np.ndarray


class Reliability(NamedTuple):
    """Points of a reliability diagram: mean probability, share that is right and number of images in each bin."""

    probability_B: np.ndarray
    share_right_B: np.ndarray
    images_B: np.ndarray


def count_by_class(label_N: np.ndarray, wrong_N: np.ndarray, mislabeled_N: np.ndarray) -> ClassCounts:
    """Count, for each noisy label, its images and the decisions that differ from the truth."""
    label_C, class_N = np.unique(np.asarray(label_N), return_inverse=True)
    err_N = np.asarray(wrong_N, bool) != np.asarray(mislabeled_N, bool)
    images_C = np.bincount(class_N, minlength=len(label_C))
    return ClassCounts(label_C, images_C, np.bincount(class_N[err_N], minlength=len(label_C)))


def error_per_class(counts: ClassCounts) -> float | None:
    """Mean over classes of each class's error, in percent (CleanNet, Table 2: "average error rate")."""
    return float(counts.error_C.mean()) if len(counts.label_C) else None


def error_pooled(counts: ClassCounts) -> float | None:
    """Share of images that are judged wrongly, in percent, whatever their class."""
    return float(100.0 * counts.errors_C.sum() / counts.images_C.sum()) if len(counts.label_C) else None


def auroc(wrong_N: np.ndarray, score_N: np.ndarray) -> float | None:
    """Probability that a wrong label scores lower than a right one; None unless there are labels of both kinds."""
    wrong_N = np.asarray(wrong_N, bool)
    return float(metrics.roc_auc_score(wrong_N, suspicion(score_N))) if _has_both(wrong_N) else None


def average_precision(wrong_N: np.ndarray, score_N: np.ndarray) -> float | None:
    """Precision of finding wrong labels, averaged over recall; None when no label is wrong."""
    wrong_N = np.asarray(wrong_N, bool)
    return float(metrics.average_precision_score(wrong_N, suspicion(score_N))) if wrong_N.any() else None


def roc_curve(wrong_N: np.ndarray, score_N: np.ndarray) -> Curve | None:
    """Share of the right labels called wrong (x) against share of the wrong labels found (y), over all thresholds."""
    wrong_N = np.asarray(wrong_N, bool)
    if not _has_both(wrong_N):
        return None
    false_T, true_T, _ = metrics.roc_curve(wrong_N, suspicion(score_N))
    return Curve(false_T, true_T)


def precision_recall_curve(wrong_N: np.ndarray, score_N: np.ndarray) -> Curve | None:
    """Recall (x, rising) against precision (y) of finding wrong labels, over all thresholds; None if none is wrong."""
    wrong_N = np.asarray(wrong_N, bool)
    if not wrong_N.any():
        return None
    precision_T, recall_T, _ = metrics.precision_recall_curve(wrong_N, suspicion(score_N))
    return Curve(recall_T[::-1], precision_T[::-1])


def operating_point(wrong_N: np.ndarray, mislabeled_N: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """(false-positive rate, recall, precision) of a detector's decisions; None where there is nothing to divide by."""
    wrong_N, mislabeled_N = np.asarray(wrong_N, bool), np.asarray(mislabeled_N, bool)
    found, called = int((wrong_N & mislabeled_N).sum()), int(mislabeled_N.sum())
    wrong, right = int(wrong_N.sum()), int((~wrong_N).sum())
    return (
        (called - found) / right if right else None,
        found / wrong if wrong else None,
        found / called if called else None,
    )


def reliability(right_N: np.ndarray, probability_N: np.ndarray, bins: int = 15) -> Reliability:
    """Equal-mass bins of the probability of being right. Equal probabilities share a bin; empty bins are left out."""
    probability_N = np.asarray(probability_N, np.float64)
    if not len(probability_N):
        return Reliability(np.empty(0), np.empty(0), np.empty(0, np.int64))
    bin_N = equal_mass_bins(probability_N, bins)
    images_B = np.bincount(bin_N, minlength=bins)
    kept = images_B > 0
    probability_B = np.bincount(bin_N, probability_N, bins)[kept] / images_B[kept]
    share_right_B = np.bincount(bin_N, np.asarray(right_N, np.float64), bins)[kept] / images_B[kept]
    return Reliability(probability_B, share_right_B, images_B[kept])


def equal_mass_bins(probability_N: np.ndarray, bins: int = 15) -> np.ndarray:
    """The bin (0 .. bins-1) of each probability, cut at quantiles as scikit-learn's `calibration_curve` cuts."""
    edges = np.quantile(probability_N, np.linspace(0, 1, bins + 1))
    return np.searchsorted(edges[1:-1], probability_N)


def expected_calibration_error(right_N: np.ndarray, probability_N: np.ndarray, bins: int = 15) -> float | None:
    """Mean over images of |share right - mean probability| of their bin, in [0, 1] (Naeini et al. 2015)."""
    points = reliability(right_N, probability_N, bins)
    if not len(points.images_B):
        return None
    return float(np.average(np.abs(points.share_right_B - points.probability_B), weights=points.images_B))


def suspicion(score_N: np.ndarray) -> np.ndarray:
    """The score turned round: higher where the label is more likely wrong."""
    return -np.asarray(score_N, np.float64)


def _has_both(wrong_N: np.ndarray) -> bool:
    return bool(wrong_N.any() and not wrong_N.all())
