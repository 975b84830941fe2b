import numpy as np

from cleanscale.stages.judged_shard import cosine, places


def test_places_find_rows_in_another_order():
    row_M = np.array([7, 3, 9])
    np.testing.assert_array_equal(row_M[places(row_M, np.array([9, 7, 3]))], [9, 7, 3])


def test_cosines_stay_within_their_range():
    unit_NE = np.full((2, 3), 3**-0.5, np.float32) * 1.0001
    assert (np.abs(cosine(unit_NE, np.array([[1], [-1]]) * unit_NE)) <= 1).all()
