import numpy as np
import pytest

from cleanscale.maths.references import make_references
from cleanscale.training.cleannet_batches import GroupedBatches, reference_positions


@pytest.fixture
def data():
    """6 classes of 9 images and 20 of class 9, which is the only one with more images than references."""
    rng = np.random.default_rng(0)
    label_N = np.repeat([0, 1, 2, 3, 4, 5, 9], [9, 9, 9, 9, 9, 9, 20]).astype(np.int32)
    feature_ND = rng.normal(size=(len(label_N), 4)).astype(np.float32)
    verified_N = np.where((label_N < 3) & (rng.random(len(label_N)) < 0.6), rng.integers(0, 2, len(label_N)), -1)
    return label_N, verified_N, make_references(feature_ND, label_N, np.arange(len(label_N)), per_class=12, seed=0)


def batches(data, **changed):
    label_N, verified_N, references = data
    sizes = {"classes": 3, "queries_per_class": 4, "references_per_step": 0, "seed": 0}
    return GroupedBatches(label_N, verified_N, references, **(sizes | changed))


def test_half_of_the_queries_are_verified(data):
    for step in range(20):
        image_Q = batches(data).batch(step).image_Q
        assert (data[1][image_Q] >= 0).sum() == len(image_Q) // 2 == 12


def test_own_classes_are_the_queries_labels_and_each_class_is_encoded_once(data):
    label_N, _, references = data
    class_of_M = np.repeat(references.label_C, np.diff(references.offset_C1))
    for step in range(20):
        batch = batches(data).batch(step)
        label_S = class_of_M[batch.reference_SK[:, 0]]
        assert len(np.unique(label_S)) == len(label_S) <= 6
        np.testing.assert_array_equal(label_S[batch.own_Q], label_N[batch.image_Q])
        for references_K, real_K, label in zip(batch.reference_SK, batch.real_SK, label_S, strict=True):
            assert sorted(references_K[real_K]) == list(np.flatnonzero(class_of_M == label))


def test_images_of_other_workers_are_drawn_only_where_they_are_verified(data):
    label_N, verified_N, references = data
    own_N = label_N % 2 == 0
    made = GroupedBatches(
        label_N, verified_N, references, own_N=own_N, classes=3, queries_per_class=4, references_per_step=0, seed=0
    )
    image_Q = np.concatenate([made.batch(step).image_Q for step in range(20)])
    assert own_N[image_Q[verified_N[image_Q] < 0]].all()
    assert not own_N[image_Q[verified_N[image_Q] >= 0]].all()


def test_references_of_a_step_are_a_part_of_the_class_s(data):
    _, _, references = data
    seen = set()
    for step in range(40):
        batch = batches(data, references_per_step=5).batch(step)
        assert batch.reference_SK.shape[1] == 5
        assert batch.real_SK.all()
        assert all(len(set(row)) == 5 for row in batch.reference_SK.tolist())
        seen |= set(batch.reference_SK.ravel().tolist())
    assert seen == set(range(len(references.vector_MD)))


def test_draws_are_keyed_by_step_rank_and_seed_alone(data):
    first = batches(data).batch(3)
    np.testing.assert_array_equal(first.image_Q, batches(data).batch(3).image_Q)
    for other in (batches(data).batch(4), batches(data, rank=1).batch(3), batches(data, seed=1).batch(3)):
        assert not np.array_equal(first.image_Q, other.image_Q)


@pytest.mark.parametrize("fill", [-1, 0, 1])
def test_a_missing_half_is_replaced_by_the_other(data, fill):
    label_N, _, references = data
    one_kind = (label_N, np.full(len(label_N), fill), references)
    assert len(batches(one_kind).batch(0).image_Q) == 24


def test_images_of_classes_without_references_are_not_drawn(data):
    label_N, verified_N, references = data
    few = (label_N, verified_N, references.select(np.array([1, 4])))
    for step in range(10):
        assert set(label_N[batches(few).batch(step).image_Q]) <= {1, 4}
    assert batches((label_N, verified_N, references.select(np.array([77])))).empty


def test_very_many_classes_are_drawn_without_looking_at_all():
    label_N = np.arange(5000, dtype=np.int32)
    references = make_references(np.ones((5000, 2), np.float32), label_N, np.arange(5000), seed=0)
    many = GroupedBatches(
        label_N, np.full(5000, -1), references, classes=8, queries_per_class=2, references_per_step=0, seed=0
    )
    drawn = [len(np.unique(label_N[many.batch(step).image_Q])) for step in range(50)]
    assert max(drawn) == 16
    assert min(drawn) >= 14


def test_padding_is_marked():
    at_SK, real_SK = reference_positions(np.array([0, 2, 5, 6]), np.array([1, 2]))
    np.testing.assert_array_equal(at_SK, [[2, 3, 4], [5, 5, 5]])
    np.testing.assert_array_equal(real_SK, [[True, True, True], [True, False, False]])
