import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanscale.storage.shards import deal, plan_shards


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 10_000), st.integers(1, 400), min_size=1, max_size=40), st.integers(30, 500))
def test_every_image_belongs_to_exactly_one_shard(counts, target_rows):
    label_C = np.array(sorted(counts))
    count_C = np.array([counts[c] for c in label_C])
    label_N = np.repeat(label_C, count_C)
    row_N = np.arange(len(label_N))
    shards = plan_shards(label_C, count_C, target_rows)
    owners_N = sum(s.contains(label_N, row_N).astype(int) for s in shards)
    assert (owners_N == 1).all()
    assert all(s.contains(label_N, row_N).sum() <= 2.5 * target_rows + 1 for s in shards)


def test_a_huge_class_comes_in_several_parts_and_its_neighbours_do_not_join_it():
    shards = plan_shards(np.array([3, 7, 9]), np.array([10, 1000, 10]), target_rows=100)
    assert [(s.label_start, s.label_stop, s.parts) for s in shards[:1]] == [(3, 4, 1)]
    assert [s.parts for s in shards if s.label_start == 7] == [10] * 10
    assert shards[-1].label_start == 9


@pytest.mark.parametrize("every", [1, 2, 8])
def test_parts_are_about_equal_however_classes_take_turns_in_the_input(every):
    shards = plan_shards(np.array([0]), np.array([8000]), target_rows=1000)
    row_N = np.arange(0, 8000 * every, every)
    sizes = [shard.contains(np.zeros(8000, int), row_N).sum() for shard in shards]
    assert sum(sizes) == 8000
    assert min(sizes) > 850


def test_shards_are_dealt_by_images():
    shards = plan_shards(np.arange(10), np.array([90, 10, 10, 10, 10, 10, 10, 10, 10, 10]), target_rows=10)
    rows = [sum(s.rows for s in hand) for hand in deal(shards, 2)]
    assert sum(rows) == 180
    assert max(rows) <= 100
