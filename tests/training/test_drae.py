import numpy as np
import pytest

from cleanscale.training.drae import log_error_below_split

pytestmark = pytest.mark.usefixtures("alone")


def class_with_outliers(seed=0):
    """(feature_ND, inlier_N): most images near a plane, a quarter anywhere."""
    random = np.random.default_rng(seed)
    inlier_N = np.arange(160) >= 40
    plane_ND = random.standard_normal((160, 2)) @ random.standard_normal((2, 24))
    feature_ND = np.where(inlier_N[:, None], plane_ND, 1.4 * random.standard_normal((160, 24)))
    return (feature_ND + 0.05 * random.standard_normal((160, 24))).astype(np.float32), inlier_N


def test_what_is_unlike_the_rest_of_the_class_is_rebuilt_badly():
    feature_ND, inlier_N = class_with_outliers()
    score_N = log_error_below_split(feature_ND, feature_ND, seed=0)
    assert np.mean((score_N > 0) == inlier_N) > 0.9


def test_an_image_is_judged_alike_among_any_others():
    feature_ND, _ = class_with_outliers()
    whole_N = log_error_below_split(feature_ND, feature_ND, seed=0)
    part_N = log_error_below_split(feature_ND, feature_ND[30:50], seed=0)
    np.testing.assert_allclose(part_N, whole_N[30:50], rtol=1e-4, atol=1e-5)


def test_images_that_are_all_alike_are_all_inliers():
    same_ND = np.ones((12, 5), np.float32)
    assert (log_error_below_split(same_ND, same_ND, seed=0) >= 0).all()
