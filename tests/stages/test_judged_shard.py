import numpy as np

from cleanscale.stages.judged_shard import places


def test_places_find_rows_in_another_order():
    row_M = np.array([7, 3, 9])
    np.testing.assert_array_equal(row_M[places(row_M, np.array([9, 7, 3]))], [9, 7, 3])
