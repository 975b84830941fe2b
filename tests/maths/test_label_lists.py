import numpy as np
import pytest

from cleanscale.maths.label_lists import LabelLists, concatenate

ROWS = np.array([7, 3, 9, 5])
LISTS = {7: [4, 1], 3: [], 9: [2], 5: [0, 1, 2]}


@pytest.fixture
def lists() -> LabelLists:
    edges = [(row, label) for row, labels in LISTS.items() for label in labels] + [(100, 1)]
    row_E, label_E = np.array(edges)[np.random.default_rng(0).permutation(len(edges))].T
    return LabelLists.of_edges(row_E, label_E, ROWS)


def as_lists(lists: LabelLists) -> list[list[int]]:
    return [lists.label_E[a:b].tolist() for a, b in zip(lists.start_N1[:-1], lists.start_N1[1:], strict=True)]


def test_images_have_the_labels_of_their_rows_in_any_order_of_edges(lists):
    assert as_lists(lists) == [sorted(LISTS[row]) for row in ROWS]


def test_taking_positions_gives_these_images_also_twice(lists):
    assert as_lists(lists.take(np.array([3, 1, 0, 3]))) == [[0, 1, 2], [], [1, 4], [0, 1, 2]]
    assert as_lists(lists.take(np.empty(0, np.int64))) == []


def test_multi_hot_is_the_slow_one_also_for_some_classes(lists):
    for classes in (None, np.array([1, 2, 6])):
        named = range(5) if classes is None else classes
        slow = [[float(label in LISTS[row]) for label in named] for row in ROWS]
        np.testing.assert_array_equal(lists.multi_hot(classes, 5), slow)


def test_padded_lists_end_in_minus_one_and_long_ones_are_cut(lists):
    np.testing.assert_array_equal(lists.padded(2), [[1, 4], [-1, -1], [2, -1], [0, 1]])


def test_one_label_per_image_is_a_list_of_one():
    assert as_lists(LabelLists.single(np.array([3, 0], np.int32))) == [[3], [0]]


def test_images_stand_behind_each_other(lists):
    assert as_lists(concatenate(lists, lists.take(np.array([2])))) == [*as_lists(lists), [2]]


def test_no_edges_and_no_images():
    nothing = np.empty(0, np.int64)
    assert as_lists(LabelLists.of_edges(nothing, nothing, ROWS)) == [[], [], [], []]
    assert len(LabelLists.of_edges(np.array([1]), np.array([1]), nothing)) == 0
