import numpy as np
import pytest

from cleanscale.storage.arrays import read_array, read_range, scatter, write_array


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_range_of_an_array_is_what_was_written(tmp_path, place):
    uri = str(tmp_path / "labels.npy") if place == "local" else "memory://arrays/labels.npy"
    values = np.arange(1000, dtype=np.int32) * 3
    write_array(uri, values)
    assert np.array_equal(read_array(uri), values)
    assert np.array_equal(read_range(uri, 990, 2000), values[990:])
    assert np.array_equal(read_range(uri, 10, 20), values[10:20])


def test_scatter_fills_what_no_part_has():
    found = scatter(5, [(np.array([1, 3]), np.array([7, 8]))], fill=-1, dtype=np.int32)
    assert found.tolist() == [-1, 7, -1, 8, -1]
