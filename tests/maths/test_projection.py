import numpy as np
from sklearn.decomposition import PCA

from cleanscale.maths.projection import Projection, fit_projection, signed_sqrt


def sample(images=200, width=12, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((images, 4)) @ rng.standard_normal((4, width))) + 0.1 * rng.standard_normal(
        (images, width)
    )


def test_it_is_the_pca_of_square_roots():
    feature_ND = sample()
    ours = fit_projection(feature_ND, 5)(feature_ND)
    theirs = PCA(5, svd_solver="full").fit_transform(signed_sqrt(feature_ND))
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-3)


def test_it_goes_through_a_file_unchanged():
    projection = fit_projection(sample(), 5)
    again = Projection.of_array(projection.to_array())
    assert again.width == 5
    np.testing.assert_array_equal(again(sample(seed=1)), projection(sample(seed=1)))


def test_the_order_of_the_sample_turns_no_component_around():
    feature_ND = sample()
    np.testing.assert_allclose(
        fit_projection(feature_ND, 3).basis_DK, fit_projection(feature_ND[::-1], 3).basis_DK, atol=1e-4
    )
