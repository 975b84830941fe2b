import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cleanscale.maths.calibration import fit_logistic, fit_platt, sigmoid


def make_labels(images: int = 400):
    random = np.random.default_rng(0)
    value_NS = random.standard_normal((images, 3))
    right_N = random.random(images) < sigmoid(value_NS @ [2.0, -1.0, 0.0] + 0.5)
    return value_NS, right_N


def test_logistic_regression_agrees_with_scikit_learn():
    value_NS, right_N = make_labels()
    coefficient_S, intercept = fit_logistic(value_NS, right_N, penalty=2.0, prior_count=0.0)
    reference = LogisticRegression(C=0.5, tol=1e-8, max_iter=1000).fit(value_NS, right_N)
    np.testing.assert_allclose(coefficient_S, reference.coef_[0], atol=1e-3)
    assert intercept == pytest.approx(reference.intercept_[0], abs=1e-3)


def test_what_is_believed_beforehand_needs_no_coefficients():
    value_NS, right_N = make_labels()
    believed_N = value_NS @ [2.0, -1.0, 0.0] + 0.5
    coefficient_S, intercept = fit_logistic(value_NS, right_N, penalty=1e6, offset_N=believed_N)
    assert np.abs(coefficient_S).max() < 1e-3
    assert abs(intercept) < 0.5


@pytest.mark.parametrize("right", [True, False])
def test_labels_of_one_kind_give_finite_models(right):
    value_NS, _ = make_labels(30)
    coefficient_S, intercept = fit_logistic(value_NS, np.full(30, right), penalty=1.0)
    assert np.isfinite(coefficient_S).all()
    assert abs(intercept) < 10
    slope, shift = fit_platt(value_NS[:, 0], np.full(30, right))
    assert (sigmoid(slope * value_NS[:, 0] + shift) > 0.5).all() == right


def test_calibration_gives_the_share_that_is_right_and_never_turns_scores_around():
    random = np.random.default_rng(1)
    score_N = random.standard_normal(20_000)
    right_N = random.random(20_000) < sigmoid(3 * score_N - 1)
    assert fit_platt(score_N, right_N) == pytest.approx((3, -1), abs=0.15)
    assert fit_platt(-score_N, right_N)[0] == 0
    assert fit_platt(np.empty(0), np.empty(0, bool)) == (1, 0)


def test_sigmoid_does_not_overflow():
    np.testing.assert_array_equal(sigmoid(np.array([-1e6, 0, 1e6])), [0, 0.5, 1])
