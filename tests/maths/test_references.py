import numpy as np
import pytest

from cleanscale.errors import ConfigError, DataError
from cleanscale.maths.references import ReferenceSets, make_references


def clustered(sizes: dict[int, int], width: int = 12, seed: int = 0):
    rng = np.random.default_rng(seed)
    label_N = np.repeat(list(sizes), list(sizes.values())).astype(np.int32)
    centre_XD = rng.normal(size=(6, width)) * 4
    feature_ND = (centre_XD[rng.integers(0, 6, len(label_N))] + rng.normal(size=(len(label_N), width))).astype(
        np.float32
    )
    return feature_ND, label_N, rng.permutation(len(label_N)) + 1000


def inertia(feature_ND, centre_KD):
    return np.square(feature_ND[:, None] - centre_KD).sum(axis=2).min(axis=1).sum()


def slow_lloyd(feature_ND, centre_KD, iterations):
    """Lloyd's algorithm on the features themselves."""
    for _ in range(iterations):
        nearest_N = np.square(feature_ND[:, None] - centre_KD).sum(axis=2).argmin(axis=1)
        centre_KD = np.stack([feature_ND[nearest_N == k].mean(axis=0) for k in np.unique(nearest_N)])
    return centre_KD


def test_centroids_are_a_fixed_point_of_lloyd_on_the_features():
    feature_ND, label_N, row_N = clustered({3: 90})
    made = make_references(feature_ND, label_N, row_N, per_class=5, iterations=200, seed=0)
    again_KD = slow_lloyd(feature_ND.astype(np.float64), made.of(3).astype(np.float64), 1)
    np.testing.assert_allclose(made.of(3), again_KD, atol=1e-4)
    assert made.count_M.sum() == 90


def test_iterations_lower_the_inertia():
    feature_ND, label_N, row_N = clustered({0: 300})
    few = make_references(feature_ND, label_N, row_N, per_class=20, iterations=1, seed=1)
    many = make_references(feature_ND, label_N, row_N, per_class=20, iterations=10, seed=1)
    assert inertia(feature_ND, many.of(0)) < inertia(feature_ND, few.of(0))


def test_inertia_is_close_to_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    feature_ND, label_N, row_N = clustered({0: 200}, width=24)
    theirs = cluster.KMeans(30, n_init=1, max_iter=10, random_state=0).fit(feature_ND)
    ours = make_references(feature_ND, label_N, row_N, per_class=30, seed=0)
    assert inertia(feature_ND, ours.of(0)) < 1.05 * theirs.inertia_


def test_references_do_not_depend_on_the_other_classes_of_the_call():
    feature_ND, label_N, row_N = clustered({1: 130, 2: 131, 5: 60, 9: 40, 11: 300})
    together = make_references(feature_ND, label_N, row_N, per_class=50, seed=3)
    for label in (1, 2, 5, 9, 11):
        mine = label_N == label
        alone = make_references(feature_ND[mine], label_N[mine], row_N[mine], per_class=50, seed=3)
        np.testing.assert_array_equal(together.of(label), alone.vector_MD)


def test_references_do_not_depend_on_the_order_of_images():
    feature_ND, label_N, row_N = clustered({1: 130, 2: 700})
    shuffled = np.random.default_rng(5).permutation(len(label_N))
    first = make_references(feature_ND, label_N, row_N, max_images=200, seed=3)
    second = make_references(feature_ND[shuffled], label_N[shuffled], row_N[shuffled], max_images=200, seed=3)
    np.testing.assert_array_equal(first.vector_MD, second.vector_MD)
    np.testing.assert_array_equal(first.nearest_row_M, second.nearest_row_M)


def test_reservoir_bounds_the_images_of_a_class():
    feature_ND, label_N, row_N = clustered({1: 700})
    made = make_references(feature_ND, label_N, row_N, max_images=120, seed=0)
    assert made.count_M.sum() == 120


def test_small_classes_keep_their_images():
    feature_ND, label_N, row_N = clustered({4: 7, 8: 50})
    made = make_references(feature_ND.astype(np.float16), label_N, row_N, per_class=50, seed=0)
    by_row = np.argsort(row_N[:7])
    np.testing.assert_array_equal(made.of(4), feature_ND[:7][by_row].astype(np.float16))
    assert made.of(4).dtype == np.float32
    assert (made.count_M == 1).all()
    assert len(made.of(8)) == 50


def test_random_method_takes_images_of_the_class():
    feature_ND, label_N, row_N = clustered({1: 100, 2: 10})
    made = make_references(feature_ND, label_N, row_N, per_class=20, method="random", seed=0)
    assert len(made.of(1)) == 20
    at = {row: i for i, row in enumerate(row_N)}
    np.testing.assert_array_equal(made.vector_MD, feature_ND[[at[row] for row in made.nearest_row_M]])


def test_equal_images_give_fewer_references_and_none_is_empty():
    feature_ND = np.repeat(np.eye(3, 4, dtype=np.float32), 30, axis=0)
    made = make_references(feature_ND, np.zeros(90, np.int32), np.arange(90), per_class=10, seed=0)
    assert len(made.of(0)) == 3
    assert (made.count_M == 30).all()


def test_nearest_rows_are_nearest():
    feature_ND, label_N, row_N = clustered({1: 120})
    made = make_references(feature_ND, label_N, row_N, per_class=10, seed=0)
    distance_KN = np.square(made.of(1)[:, None] - feature_ND).sum(axis=2)
    found_K = [np.flatnonzero(row_N == row)[0] for row in made.nearest_row_M]
    np.testing.assert_allclose(distance_KN[np.arange(10), found_K], distance_KN.min(axis=1), rtol=1e-3)


def test_no_images_give_no_references():
    made = make_references(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, np.int64), seed=0)
    assert len(made) == 0
    assert made.mean_CD().shape == (0, 4)
    assert made.of(3).shape == (0, 4)


def test_a_feature_that_is_not_finite_is_named_by_its_class():
    feature_ND, label_N, row_N = clustered({1: 60, 7: 60})
    feature_ND[70, 2] = np.nan
    with pytest.raises(DataError, match="class 7"):
        make_references(feature_ND, label_N, row_N, seed=0)


def test_more_references_than_images_looked_at_is_refused():
    with pytest.raises(ConfigError, match="max_images"):
        make_references(*clustered({1: 60}), per_class=50, max_images=10, seed=0)


def test_mean_is_the_mean_of_the_images():
    feature_ND, label_N, row_N = clustered({1: 130, 6: 20})
    made = make_references(feature_ND, label_N, row_N, seed=0)
    expected_CD = np.stack([feature_ND[label_N == c].mean(axis=0) for c in (1, 6)])
    np.testing.assert_allclose(made.mean_CD(), expected_CD, atol=1e-4)


def test_concatenated_shards_select_like_one_call():
    feature_ND, label_N, row_N = clustered({1: 60, 3: 20, 4: 70})
    whole = make_references(feature_ND, label_N, row_N, seed=0)
    parts = [
        make_references(feature_ND[m], label_N[m], row_N[m], seed=0) for m in (label_N == 4, np.isin(label_N, [1, 3]))
    ]
    joined = ReferenceSets.concatenate(parts)
    np.testing.assert_array_equal(joined.label_C, whole.label_C)
    np.testing.assert_array_equal(joined.vector_MD, whole.vector_MD)
    chosen = joined.select(np.array([4, 2, 1]))
    np.testing.assert_array_equal(chosen.label_C, [1, 4])
    np.testing.assert_array_equal(chosen.of(4), whole.of(4))
    assert list(joined.position(np.array([3, 2, 9]))) == [1, -1, -1]
    with pytest.raises(DataError, match="class 4"):
        ReferenceSets.concatenate([parts[0], parts[0]])
