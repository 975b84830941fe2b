from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanscale.maths.epoch_plan import accepted_rows, epoch_batches, epoch_chunks, shuffled, steps_per_epoch

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


@given(**sizes, batch=st.integers(1, 40), window=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_all_workers_take_the_same_full_steps_and_real_images_occur_once(
    num_images, chunk_images, world, epoch, batch, window
):
    seen = []
    for rank in range(world):
        plan = epoch_batches(
            num_images, batch, seed=1, epoch=epoch, rank=rank, world=world, chunk_images=chunk_images,
            window_chunks=window,
        )  # fmt: skip
        steps = list(plan)
        assert len(steps) == steps_per_epoch(num_images, batch, world)
        assert all(len(step.position_B) == batch for step in steps)
        assert all(np.isin(step.position_B, np.arange(num_images)).all() for step in steps)
        seen += [step.position_B[step.real_B] for step in steps]
    assert sorted(np.concatenate(seen)) == list(range(num_images))


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


def test_positions_skip_rejected_rows():
    np.testing.assert_array_equal(accepted_rows(6, np.array([1, 4])), [0, 2, 3, 5])


def test_class_sorted_input_is_mixed_in_every_batch():
    label_N = np.repeat(np.arange(20), 100)
    for step in epoch_batches(2000, 100, seed=0, epoch=0, chunk_images=10, window_chunks=100):
        assert len(np.unique(label_N[step.position_B])) >= 12


def test_an_epoch_without_images_is_a_bug_of_the_caller():
    with pytest.raises(AssertionError):
        steps_per_epoch(0, 8, 1)
