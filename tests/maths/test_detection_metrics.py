"""The measures against scikit-learn and slow twins, and what they say when there is nothing to measure."""

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from cleanscale.maths import detection_metrics as dm


@pytest.fixture
def judged():
    rng = np.random.default_rng(3)
    label_N = rng.integers(7, size=400) * 10
    wrong_N = rng.random(400) < 0.3
    score_N = np.round(rng.normal(size=400) - wrong_N, 1)  # with ties
    return label_N, wrong_N, score_N


def test_error_per_class_is_the_mean_of_each_class_error(judged):
    label_N, wrong_N, score_N = judged
    called_N = score_N < -0.5
    errors = []
    for label in set(label_N.tolist()):
        own = [i for i in range(400) if label_N[i] == label]
        errors.append(100 * sum(called_N[i] != wrong_N[i] for i in own) / len(own))
    counts = dm.count_by_class(label_N, wrong_N, called_N)
    assert dm.error_per_class(counts) == pytest.approx(sum(errors) / 7)
    assert dm.error_pooled(counts) == pytest.approx(100 * metrics.zero_one_loss(wrong_N, called_N))
    assert counts.label_C.tolist() == [0, 10, 20, 30, 40, 50, 60]


def test_naive_errs_by_the_share_of_wrong_labels(judged):
    label_N, wrong_N, _ = judged
    counts = dm.count_by_class(label_N, wrong_N, np.zeros(400, bool))
    assert dm.error_pooled(counts) == pytest.approx(100 * wrong_N.mean())


def test_wrong_is_the_positive_class_and_low_scores_are_suspicious():
    wrong_N, score_N = np.array([True, True, False, False]), np.array([-1.0, 0.1, 0.2, 0.9])
    assert dm.auroc(wrong_N, score_N) == 1.0
    assert dm.average_precision(wrong_N, score_N) == 1.0
    assert dm.auroc(wrong_N, -score_N) == 0.0
    assert dm.operating_point(wrong_N, np.array([True, False, True, False])) == (0.5, 0.5, 0.5)


def test_auroc_counts_pairs_and_halves_of_ties(judged):
    _, wrong_N, score_N = judged
    pairs = [
        1.0 if bad < good else 0.5 if bad == good else 0.0 for bad in score_N[wrong_N] for good in score_N[~wrong_N]
    ]
    assert dm.auroc(wrong_N, score_N) == pytest.approx(np.mean(pairs))


def test_curves_enclose_the_reported_areas(judged):
    _, wrong_N, score_N = judged
    curve = dm.roc_curve(wrong_N, score_N)
    assert np.trapezoid(curve.y_T, curve.x_T) == pytest.approx(dm.auroc(wrong_N, score_N))
    recall = dm.precision_recall_curve(wrong_N, score_N)
    assert (np.diff(recall.x_T) >= 0).all()
    steps = np.diff(recall.x_T) * recall.y_T[1:]
    assert steps.sum() == pytest.approx(dm.average_precision(wrong_N, score_N))


def test_what_is_not_defined_is_none():
    nothing, none_wrong, all_wrong = np.empty(0), np.zeros(5, bool), np.ones(5, bool)
    score_N = np.arange(5.0)
    empty = dm.count_by_class(nothing, nothing, nothing)
    assert dm.error_per_class(empty) is None
    assert dm.error_pooled(empty) is None
    assert dm.auroc(none_wrong, score_N) is dm.auroc(all_wrong, score_N) is dm.auroc(nothing, nothing) is None
    assert dm.average_precision(none_wrong, score_N) is None
    assert dm.average_precision(all_wrong, score_N) == 1.0
    assert dm.roc_curve(none_wrong, score_N) is dm.precision_recall_curve(none_wrong, score_N) is None
    assert dm.operating_point(none_wrong, none_wrong) == (0.0, None, None)
    assert dm.expected_calibration_error(nothing, nothing) is None


def test_reliability_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    probability_N = rng.beta(3, 1, size=3000)
    right_N = rng.random(3000) < probability_N**2
    share_B, mean_B = calibration_curve(right_N, probability_N, n_bins=15, strategy="quantile")
    points = dm.reliability(right_N, probability_N)
    np.testing.assert_allclose(points.share_right_B, share_B)
    np.testing.assert_allclose(points.probability_B, mean_B)
    assert points.images_B.sum() == 3000
    assert np.ptp(points.images_B) <= 1
    slow = sum(n / 3000 * abs(s - m) for n, s, m in zip(points.images_B, share_B, mean_B, strict=True))
    assert dm.expected_calibration_error(right_N, probability_N) == pytest.approx(slow)


def test_calibration_error_does_not_depend_on_the_order_of_tied_rows():
    probability_N = np.repeat([0.2, 0.9], 50)
    right_N = np.tile([True, False], 50)
    turned = dm.expected_calibration_error(right_N[::-1], probability_N[::-1])
    assert dm.expected_calibration_error(right_N, probability_N) == turned == pytest.approx(0.35)
    assert len(dm.reliability(right_N, probability_N).images_B) == 2
