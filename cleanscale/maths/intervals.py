"""95 % bootstrap intervals over classes and images, paired differences, and the tables of metrics.json made of them.

N images, C classes with images, U distinct kinds of class, K outcomes of an image, B resamples. The classes that were
evaluated stand for other classes and the images for other images, so a resample draws classes, and then images within
each drawn class. (Both levels count the noise within a class: where classes have few images, intervals are wide.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cleanscale.maths import detection_metrics
from cleanscale.maths.detection_metrics import ClassCounts
from cleanscale.maths.keyed_random import Purpose, generator

LEVEL = 0.95
RESAMPLES = 1000
FEWEST_RESAMPLES = 200
# Work per interval: above it fewer resamples are drawn, down to FEWEST_RESAMPLES.
_DRAWS_OF_KINDS, _DRAWS_OF_ROWS, _BLOCK = 10_000_000, 5_000_000, 2_000_000
# The last part of the random key: what is being resampled.
_KINDS, _ROWS, _ACCURACY = 0, 1, 2

Decision = tuple[np.ndarray, "np.ndarray | None"]


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval and the number of images behind it; all None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    @classmethod
    def of_draws(cls, value: float | None, draw_B: np.ndarray, n: int) -> Measured:
        """The percentile interval of a statistic's resampled values; resamples that leave it undefined are NaN."""
        if value is None or not np.isfinite(value):
            return cls(None, None, None, int(n))
        draw_B = draw_B[np.isfinite(draw_B)]
        if not len(draw_B):
            return cls(float(value), None, None, int(n))
        low, high = np.quantile(draw_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(value), float(min(low, value)), float(max(high, value)), int(n))


# ---- resampling ------------------------------------------------------------------------------------------------------


def resample_classes(
    images_C: np.ndarray, outcome_CK: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Two-level bootstrap of shares, from counts alone: nothing of size images x resamples exists.

    An image has at most one of K outcomes, and `outcome_CK` counts them in each class. Classes that agree in all counts
    are one kind; m draws of a kind with n images are together m * n draws of images, so their outcomes are multinomial.

    Returns:
        [B, K] mean over classes of each outcome's share, and [B, K] its share among all images.
    """
    kind_UK, number_U = np.unique(np.column_stack([images_C, outcome_CK]), axis=0, return_counts=True)
    images_U, share_UK = kind_UK[:, 0], kind_UK[:, 1:] / kind_UK[:, :1]
    resamples = _affordable(resamples, _DRAWS_OF_KINDS, len(images_U))
    rng = generator(seed, Purpose.BOOTSTRAP, _KINDS)
    classes = int(number_U.sum())
    mean_BK = np.empty((resamples, share_UK.shape[1]))
    pooled_BK = np.empty_like(mean_BK)
    block = max(1, _BLOCK // len(images_U))
    for begin in range(0, resamples, block):
        here = slice(begin, min(begin + block, resamples))
        images_BU = rng.multinomial(classes, number_U / classes, size=here.stop - here.start) * images_U
        left_BU, share_left_U = images_BU, np.ones(len(images_U))
        for k, share_U in enumerate(share_UK.T):
            chance_U = np.divide(share_U, share_left_U, out=np.zeros_like(share_U), where=share_left_U > 0)
            outcome_BU = rng.binomial(left_BU, np.clip(chance_U, 0, 1))
            left_BU, share_left_U = left_BU - outcome_BU, share_left_U - share_U
            mean_BK[here, k] = (outcome_BU / images_U).sum(1) / classes
            pooled_BK[here, k] = outcome_BU.sum(1) / images_BU.sum(1)
    return mean_BK, pooled_BK


def resampled_weights(images_C: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each row is drawn, one [N] array per resample, for rows sorted by class with `images_C` rows each."""
    images_C = np.asarray(images_C, np.int64)
    start_C = np.cumsum(images_C) - images_C
    rows, classes = int(images_C.sum()), len(images_C)
    for b in range(_affordable(resamples, _DRAWS_OF_ROWS, rows)):
        rng = generator(seed, Purpose.BOOTSTRAP, _ROWS, b)
        drawn_C = rng.integers(classes, size=classes)
        images_drawn_C = images_C[drawn_C]
        within = rng.random(int(images_drawn_C.sum())) * np.repeat(images_drawn_C, images_drawn_C)
        row = np.repeat(start_C[drawn_C], images_drawn_C) + within.astype(np.int64)
        yield np.bincount(row, minlength=rows)


class WeightedRanking:
    """AUROC and average precision of one ranking under many weightings of its rows: sorted once, then linear."""

    def __init__(self, wrong_N: np.ndarray, score_N: np.ndarray):
        wrong_N, score_N = np.asarray(wrong_N, bool), np.asarray(score_N, np.float64)
        self._order_N = np.argsort(score_N, kind="stable")
        self._wrong_N = wrong_N[self._order_N]
        sorted_N = score_N[self._order_N]
        self._tie_T = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])

    def measure(self, weight_N: np.ndarray) -> tuple[float, float]:
        """(AUROC, average precision); NaN where the weights leave no image of a kind that is needed."""
        weight_N = weight_N[self._order_N].astype(np.float64)
        wrong_T = weight_N * self._wrong_N
        right_T = weight_N - wrong_T
        if len(self._tie_T) < len(weight_N):  # equal scores are one threshold
            wrong_T, right_T = np.add.reduceat(wrong_T, self._tie_T), np.add.reduceat(right_T, self._tie_T)
        found_T = np.cumsum(wrong_T)
        called_T = found_T + np.cumsum(right_T)
        wrong, right = found_T[-1], called_T[-1] - found_T[-1]
        if wrong == 0:
            return np.nan, np.nan
        precision = float(wrong_T @ (found_T / np.maximum(called_T, 1.0)) / wrong)
        area = float(right_T @ (found_T - wrong_T / 2) / (wrong * right)) if right else np.nan
        return area, precision


def _affordable(resamples: int, draws: int, each: int) -> int:
    return int(min(resamples, max(FEWEST_RESAMPLES, draws // max(each, 1))))


# ---- single measures -------------------------------------------------------------------------------------------------


def measured_errors(counts: ClassCounts, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[Measured, Measured]:
    """(mean error per class, pooled error) in percent, with intervals over classes and images."""
    n, errors = int(counts.images_C.sum()), int(counts.errors_C.sum())
    if n == 0:
        return Measured(None, None, None, 0), Measured(None, None, None, 0)
    mean, pooled = detection_metrics.error_per_class(counts), detection_metrics.error_pooled(counts)
    if errors in (0, n):  # every resample looks the same: only the number of images says how sure this is
        low, high = _exact_interval(errors, n)
        return Measured(mean, low, high, n), Measured(pooled, low, high, n)
    mean_BK, pooled_BK = resample_classes(counts.images_C, counts.errors_C[:, None], resamples=resamples, seed=seed)
    return Measured.of_draws(mean, 100 * mean_BK[:, 0], n), Measured.of_draws(pooled, 100 * pooled_BK[:, 0], n)


def paired_errors(
    label_N: np.ndarray,
    wrong_N: np.ndarray,
    mislabeled_N: np.ndarray,
    other_N: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Measured, Measured]:
    """Differences of (error per class, pooled error) of two detectors on the same rows: first minus other, in points.

    Only images that one judges rightly and the other wrongly matter, so the interval is that of the paired bootstrap.
    """
    n = len(label_N)
    if n == 0:
        return Measured(None, None, None, 0), Measured(None, None, None, 0)
    err_N = np.asarray(mislabeled_N, bool) != np.asarray(wrong_N, bool)
    other_err_N = np.asarray(other_N, bool) != np.asarray(wrong_N, bool)
    _, class_N = np.unique(np.asarray(label_N), return_inverse=True)
    images_C = np.bincount(class_N)
    only_C2 = np.column_stack(
        [np.bincount(class_N[one], minlength=len(images_C)) for one in (err_N & ~other_err_N, other_err_N & ~err_N)]
    )
    gap_C = only_C2[:, 0] - only_C2[:, 1]
    mean_B2, pooled_B2 = resample_classes(images_C, only_C2, resamples=resamples, seed=seed)
    return (
        Measured.of_draws(float(100 * (gap_C / images_C).mean()), 100 * (mean_B2[:, 0] - mean_B2[:, 1]), n),
        Measured.of_draws(float(100 * gap_C.sum() / n), 100 * (pooled_B2[:, 0] - pooled_B2[:, 1]), n),
    )


def measured_accuracy(correct_N: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Measured:
    """Accuracy in percent with an interval over images (a classifier's classes are given, not drawn)."""
    correct_N = np.asarray(correct_N, bool)
    n, correct = len(correct_N), int(correct_N.sum())
    if n == 0:
        return Measured(None, None, None, 0)
    if correct in (0, n):
        return Measured(100.0 * correct / n, *_exact_interval(correct, n), n)
    draw_B = generator(seed, Purpose.BOOTSTRAP, _ACCURACY).binomial(n, correct / n, size=resamples)
    return Measured.of_draws(100 * correct / n, 100 * draw_B / n, n)


def paired_accuracy(
    correct_N: np.ndarray, other_N: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Measured:
    """Difference of two classifiers' accuracies on the same test rows, first minus other, in points, over images."""
    correct_N, other_N = np.asarray(correct_N, bool), np.asarray(other_N, bool)
    n = len(correct_N)
    if n == 0:
        return Measured(None, None, None, 0)
    gained, lost = int((correct_N & ~other_N).sum()), int((other_N & ~correct_N).sum())
    rng = generator(seed, Purpose.BOOTSTRAP, _ACCURACY)
    draw_B3 = rng.multinomial(n, [gained / n, lost / n, 1 - (gained + lost) / n], size=resamples)
    return Measured.of_draws(100 * (gained - lost) / n, 100 * (draw_B3[:, 0] - draw_B3[:, 1]) / n, n)


def measured_calibration(
    label_N: np.ndarray, right_N: np.ndarray, probability_N: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Measured:
    """Expected calibration error in [0, 1] with an interval over classes and images.

    Resampling adds noise that the error counts as miscalibration, so the draws are moved to have the value as mean.
    """
    value = detection_metrics.expected_calibration_error(right_N, probability_N)
    if value is None:
        return Measured(None, None, None, 0)
    order_N, images_C = _by_class(label_N)
    probability_N = np.asarray(probability_N, np.float64)
    bin_N = detection_metrics.equal_mass_bins(probability_N)[order_N]
    gap_N = (np.asarray(right_N, np.float64) - probability_N)[order_N]

    def error(weight_N: np.ndarray) -> float:
        return float(np.abs(np.bincount(bin_N, weight_N * gap_N)).sum() / weight_N.sum())

    draw_B = np.array([error(w_N) for w_N in resampled_weights(images_C, resamples=resamples, seed=seed)])
    return Measured.of_draws(value, np.maximum(draw_B - draw_B.mean() + value, 0), len(order_N))


def _exact_interval(successes: int, n: int) -> tuple[float, float]:
    """Clopper-Pearson, in percent, for none or all of n."""
    unseen = 100 * (1 - ((1 - LEVEL) / 2) ** (1 / n))
    return (100 - unseen, 100.0) if successes else (0.0, unseen)


def _by_class(label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order that sorts rows by class, and the number of rows of each class."""
    label_N = np.asarray(label_N)
    return np.argsort(label_N, kind="stable"), np.unique(label_N, return_counts=True)[1]


# ---- tables of metrics.json ------------------------------------------------------------------------------------------


def detection_report(
    label_N: np.ndarray,
    wrong_N: np.ndarray,
    decisions: Mapping[str, Decision],
    groups: Mapping[str, np.ndarray],
    *,
    main: str = "transfer",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Every detector's errors, AUROC and average precision on rows with known truth, as metrics.json holds them.

    Args:
        label_N: noisy labels, which say to what class an image counts.
        wrong_N: bool, the label is wrong in truth.
        decisions: by detector (called wrong [N] bool, score [N] higher where more likely right, or None).
        groups: bool masks by name, for example `held_out_classes` and `verified_classes`.
        main: the detector that all others are compared with, where it is among `decisions`.

    Returns:
        {"detection": {detector: {"error_per_class": {group: measured}, "error_pooled" | "auroc" | "average_precision":
        measured on all rows, and {group: measured}}}, "difference": {main: {other: {measure: {group: measured}}}}}; a
        difference is main minus other on the same rows, so a negative error difference speaks for main.
    """
    label_N, wrong_N = np.asarray(label_N), np.asarray(wrong_N, bool)
    detection: dict[str, dict[str, Any]] = {
        name: {measure: {} for measure in ("error_per_class", "error_pooled", "auroc", "average_precision")}
        for name in decisions
    }
    difference: dict[str, dict[str, dict[str, Any]]] = {}
    for group, mask_N in {"": np.ones(len(label_N), bool), **groups}.items():
        rows = np.flatnonzero(mask_N)
        part = {
            name: (np.asarray(called_N)[rows], None if score_N is None else np.asarray(score_N)[rows])
            for name, (called_N, score_N) in decisions.items()
        }
        measured, compared = _measure_group(label_N[rows], wrong_N[rows], part, main, resamples, seed)
        for name, by_measure in measured.items():
            for measure, value in by_measure.items():
                if group:
                    detection[name][measure][group] = value.to_json()
                elif measure != "error_per_class":
                    detection[name][measure].update(value.to_json())
        for name, by_measure in compared.items() if group else ():
            for measure, value in by_measure.items():
                difference.setdefault(name, {}).setdefault(measure, {})[group] = value.to_json()
    return {"detection": detection, "difference": {main: difference} if difference else {}}


Measures = dict[str, dict[str, Measured]]


def _measure_group(
    label_N: np.ndarray, wrong_N: np.ndarray, decisions: Mapping[str, Decision], main: str, resamples: int, seed: int
) -> tuple[Measures, Measures]:
    """All measures of all detectors on some rows, and the main detector's differences from the others."""
    ranked = _measure_rankings(label_N, wrong_N, decisions, main, resamples, seed)
    measured: Measures = {}
    compared: Measures = {}
    for name, (called_N, _) in decisions.items():
        counts = detection_metrics.count_by_class(label_N, wrong_N, called_N)
        mean, pooled = measured_errors(counts, resamples=resamples, seed=seed)
        measured[name] = {"error_per_class": mean, "error_pooled": pooled, **ranked[0][name]}
        if main in decisions and name != main:
            mean, pooled = paired_errors(label_N, wrong_N, decisions[main][0], called_N, resamples=resamples, seed=seed)
            compared[name] = {"error_per_class": mean, "error_pooled": pooled, **ranked[1].get(name, {})}
    return measured, compared


def _measure_rankings(
    label_N: np.ndarray, wrong_N: np.ndarray, decisions: Mapping[str, Decision], main: str, resamples: int, seed: int
) -> tuple[Measures, Measures]:
    """AUROC and average precision of every score, and their differences from main's, over the same resamples."""
    order_N, images_C = _by_class(label_N)
    wrong_N, n = wrong_N[order_N], len(order_N)
    scores = {name: score_N[order_N] for name, (_, score_N) in decisions.items() if score_N is not None}
    rankings = {name: WeightedRanking(wrong_N, score_N) for name, score_N in scores.items() if n and wrong_N.any()}
    draws: dict[str, list[tuple[float, float]]] = {name: [] for name in rankings}
    for weight_N in resampled_weights(images_C, resamples=resamples, seed=seed) if rankings else ():
        for name, ranking in rankings.items():
            draws[name].append(ranking.measure(weight_N))
    draw_B2 = {name: np.array(pairs) for name, pairs in draws.items()}
    undefined = Measured(None, None, None, n)
    measured: Measures = {name: {"auroc": undefined, "average_precision": undefined} for name in decisions}
    compared: Measures = {}
    for name in rankings:
        values = (
            detection_metrics.auroc(wrong_N, scores[name]),
            detection_metrics.average_precision(wrong_N, scores[name]),
        )
        for k, measure in enumerate(("auroc", "average_precision")):
            measured[name][measure] = Measured.of_draws(values[k], draw_B2[name][:, k], n)
    for name in rankings if main in rankings else ():
        if name != main:
            compared[name] = {}
            for k, measure in enumerate(("auroc", "average_precision")):
                value, other = measured[main][measure].value, measured[name][measure].value
                gap = None if value is None or other is None else value - other
                compared[name][measure] = Measured.of_draws(gap, draw_B2[main][:, k] - draw_B2[name][:, k], n)
    return measured, compared


def calibration_report(
    label_N: np.ndarray,
    wrong_N: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """{detector: {"expected_calibration_error": measured}} of probabilities that the label is right, in [0, 1]."""
    right_N = ~np.asarray(wrong_N, bool)
    return {
        name: {
            "expected_calibration_error": measured_calibration(
                label_N, right_N, probability_N, resamples=resamples, seed=seed
            ).to_json()
        }
        for name, probability_N in probabilities.items()
    }


def classification_report(
    correct: Mapping[str, Mapping[str, np.ndarray]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Accuracies of classifiers on the same test rows, and each one's gain over the first of them.

    Args:
        correct: bool [N] by classifier and measure: {"round_0": {"top1": ..., "top5": ...}, "round_1": ...}.

    Returns:
        {"classification": {classifier: {measure: measured}}, "difference": {classifier: {first: {measure: measured}}}}
    """
    first = next(iter(correct), None)
    sure: dict[str, int] = {"resamples": resamples, "seed": seed}
    return {
        "classification": {
            name: {measure: measured_accuracy(hit_N, **sure).to_json() for measure, hit_N in by_measure.items()}
            for name, by_measure in correct.items()
        },
        "difference": {
            name: {
                first: {
                    measure: paired_accuracy(hit_N, correct[first][measure], **sure).to_json()
                    for measure, hit_N in by_measure.items()
                    if measure in correct[first]
                }
            }
            for name, by_measure in correct.items()
            if first is not None and name != first
        },
    }
