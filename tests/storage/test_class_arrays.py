import numpy as np
import pytest

from cleanscale.errors import StageError
from cleanscale.storage.class_arrays import read_classes, read_some, write_range


@pytest.fixture
def folder(tmp_path) -> str:
    """Rows of classes 0 .. 3 and 6 .. 9."""
    for first in (0, 6):
        write_range(str(tmp_path), "weight", first, np.arange(first, first + 4, dtype=np.float32)[:, None])
    return str(tmp_path)


def test_classes_that_no_range_holds_are_zeros(folder):
    assert read_classes(folder, "weight", 10)[:, 0].tolist() == [0, 1, 2, 3, 0, 0, 6, 7, 8, 9]


def test_a_lost_range_is_said_where_every_class_has_a_row(folder):
    with pytest.raises(StageError, match="'weight' of 8 classes; expected all 10: a file was lost"):
        read_classes(folder, "weight", 10, every=True)
    write_range(folder, "weight", 4, np.full((2, 1), 5, np.float32))
    assert read_classes(folder, "weight", 10, every=True)[:, 0].tolist() == [0, 1, 2, 3, 5, 5, 6, 7, 8, 9]


def test_some_classes_come_from_the_ranges_that_they_lie_in(folder):
    write_range(folder, "weight", 4, np.full((2, 1), 5, np.float32))
    assert read_some(folder, "weight", 3, 7)[:, 0].tolist() == [3, 5, 5, 6]
