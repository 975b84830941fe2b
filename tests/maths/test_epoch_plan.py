from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanscale.maths.epoch_plan import epoch_chunks, epoch_windows, shuffled, steps_per_epoch

sizes = {
    "num_images": st.integers(1, 400),
    "chunk_images": st.integers(1, 70),
    "world": st.integers(1, 7),
    "epoch": st.integers(0, 3),
}


def positions(chunks):
    return [position for start, stop in chunks for position in range(start, stop)]


@given(**sizes)
@settings(max_examples=60, deadline=None)
def test_every_image_goes_to_exactly_one_worker(num_images, chunk_images, world, epoch):
    parts = [positions(epoch_chunks(num_images, chunk_images, 5, epoch, rank, world)) for rank in range(world)]
    assert sorted(chain(*parts)) == list(range(num_images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(**sizes, window=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_windows_hold_every_image_once(num_images, chunk_images, world, epoch, window):
    found = [w for r in range(world) for w in epoch_windows(num_images, chunk_images, window, 1, epoch, r, world)]
    assert sorted(np.concatenate(found)) == list(range(num_images))
    assert all(0 < len(w) <= window * chunk_images for w in found)


@given(num_images=st.integers(1, 400), world=st.integers(1, 7), batch=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_common_number_of_steps_is_just_enough_for_the_longest_part(num_images, world, batch):
    longest = max(len(positions(epoch_chunks(num_images, 16, 1, 0, rank, world))) for rank in range(world))
    steps = steps_per_epoch(num_images, batch, world)
    assert (steps - 1) * batch < longest <= steps * batch


def test_chunks_are_cut_from_the_same_sequence_for_any_number_of_workers():
    alone = positions(epoch_chunks(1000, 32, 3, 1, 0, 1))
    for world in (2, 3, 8):
        shared = chain(*[positions(epoch_chunks(1000, 32, 3, 1, rank, world)) for rank in range(world)])
        assert list(shared) == alone


def test_the_order_changes_with_epoch_and_seed():
    orders = {tuple(positions(epoch_chunks(500, 10, seed, epoch, 0, 1))) for seed in (0, 1) for epoch in range(3)}
    assert len(orders) == 6


def test_a_window_is_shuffled_alike_whatever_order_it_arrives_in():
    window = np.arange(40, 90)
    again = shuffled(window[::-1].copy(), seed=2, epoch=4)
    np.testing.assert_array_equal(shuffled(window, seed=2, epoch=4), again)
    assert not np.array_equal(again, window)
    assert not np.array_equal(again, shuffled(window, seed=2, epoch=5))


def test_class_sorted_input_is_mixed_in_every_batch():
    label_N = np.repeat(np.arange(20), 100)
    for window in epoch_windows(2000, chunk_images=10, window_chunks=100, seed=0, epoch=0, rank=0, world=1):
        for position_B in np.split(window, 10):
            assert len(np.unique(label_N[position_B])) >= 12


def test_an_epoch_without_images_is_a_bug_of_the_caller():
    with pytest.raises(AssertionError):
        steps_per_epoch(0, 8, 1)
