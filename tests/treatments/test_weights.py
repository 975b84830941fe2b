import numpy as np
import pytest

from cleanscale.treatments import TREATMENTS, Judged

JUDGED = Judged(
    relevance_N=np.array([0.9, -0.4, 0.2, 0.5, 0.7], np.float32),
    probability_correct_N=np.array([0.8, 0.1, 0.6, 0.9, 0.2], np.float32),
    mislabeled_N=np.array([False, True, False, True, False]),
    verified_N=np.array([-1, -1, -1, 0, 1], np.int8),
)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("none", [1, 1, 1, 1, 1]),
        ("soft", [0.9, 0, 0.2, 0.5, 0.7]),  # Eq. 12: max(0, cosine)
        ("hard", [1, 0, 1, 0, 1]),  # Eq. 13: 1 where the label is not called wrong
        ("probability", [0.8, 0.1, 0.6, 0, 1]),  # where somebody looked, what they found
    ],
)
def test_each_treatment_gives_its_documented_weights(name, weights):
    found = TREATMENTS[name](JUDGED)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, weights, rtol=1e-6)


def test_a_treatment_of_no_images_is_no_weights():
    nothing = Judged(*(np.empty(0, t) for t in (np.float32, np.float32, bool, np.int8)))
    assert [len(treat(nothing)) for treat in TREATMENTS.values()] == [0] * len(TREATMENTS)
