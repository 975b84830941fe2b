import numpy as np
import pytest

from cleanscale.models.heads import FrozenHead, Head


@pytest.mark.parametrize(("k", "classes"), [(5, 7), (5, 100), (50, 7), (1, 1)])
def test_the_best_classes_do_not_depend_on_how_many_are_looked_at_together(k, classes):
    rng = np.random.default_rng(0)
    head = Head(6, 23, hidden_width=4).eval().frozen()
    feature_ND = rng.standard_normal((31, 6)).astype(np.float16)
    expected_NC = np.argsort(-head.log_probability(feature_ND), axis=1, kind="stable")
    found_NK = head.top(feature_ND, k, batch=8, classes=classes)
    assert found_NK.dtype == np.int32
    np.testing.assert_array_equal(found_NK, expected_NC[:, :k])


def test_rows_of_classes_may_be_mapped_from_a_file(tmp_path):
    head = Head(6, 23).eval().frozen()
    np.save(tmp_path / "weight.npy", head.weight_CH)
    layers = (head.mean_D, head.scale_D, None, None)
    mapped = FrozenHead(*layers, np.load(tmp_path / "weight.npy", mmap_mode="r"), head.bias_C)
    feature_ND = np.random.default_rng(0).standard_normal((9, 6))
    np.testing.assert_array_equal(mapped.top(feature_ND, 3), head.top(feature_ND, 3))
    np.testing.assert_array_equal(mapped.log_probability(feature_ND), head.log_probability(feature_ND))
