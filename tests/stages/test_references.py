import numpy as np

from cleanscale.maths.references import make_references
from cleanscale.stages.references import of_table, to_table


def test_references_survive_their_table_ragged_as_they_are():
    rng = np.random.default_rng(0)
    label_N = np.repeat([2, 5, 9], [3, 40, 12]).astype(np.int32)
    feature_ND = rng.standard_normal((len(label_N), 6)).astype(np.float16)
    made = make_references(feature_ND, label_N, np.arange(len(label_N)), per_class=10, seed=0)
    again = of_table(to_table(made), 6)
    assert len(set(np.diff(made.offset_C1))) > 1
    np.testing.assert_array_equal(again.offset_C1, made.offset_C1)
    np.testing.assert_array_equal(again.label_C, made.label_C)
    np.testing.assert_array_equal(again.count_M, made.count_M)
    np.testing.assert_array_equal(again.nearest_row_M, made.nearest_row_M)
    np.testing.assert_allclose(again.vector_MD, made.vector_MD, rtol=1e-3, atol=1e-3)
