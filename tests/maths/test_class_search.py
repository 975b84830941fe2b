import numpy as np
import pytest

from cleanscale.maths import class_search, compared_classes
from cleanscale.maths.class_search import RangeIndex, merged, packed, probed_lists, recall, unpacked, without

WIDTH = 16


def clustered(classes: int, seed: int = 0) -> np.ndarray:
    """[C, E] float32 of length 1 around a few centres."""
    rng = np.random.default_rng(seed)
    centre_XE = rng.normal(size=(max(1, classes // 50), WIDTH))
    vector_CE = centre_XE[rng.integers(0, len(centre_XE), classes)] + 0.7 * rng.normal(size=(classes, WIDTH))
    return (vector_CE / np.linalg.norm(vector_CE, axis=1, keepdims=True)).astype(np.float32)


def cut(label_C, vector_CE, codes_of, parts: int) -> list[RangeIndex]:
    pieces = np.array_split(np.arange(len(label_C)), parts)
    return [RangeIndex(label_C[at], vector_CE[at], codes_of(vector_CE[at])) for at in pieces]


def ask(ranges, query_QE, lists, candidates, most):
    return merged([r.search(query_QE, lists, candidates) for r in ranges], candidates).best(most)


@pytest.fixture(scope="module")
def classes():
    """Labels with gaps, and vectors some of which are equal."""
    vector_CE = clustered(3000)
    vector_CE[1000:1040] = vector_CE[2000]  # classes that cannot be told apart: more than are asked for
    vector_CE[5] = vector_CE[2900]
    return np.arange(3000) * 3 + 7, vector_CE


@pytest.fixture(scope="module")
def trained(classes):
    return class_search.train(classes[1], 40, seed=0)


@pytest.mark.parametrize("parts", [2, 7])
def test_comparing_all_classes_gives_the_same_for_any_number_of_ranges(classes, parts):
    label_C, vector_CE = classes
    query_QE = np.concatenate([clustered(150, seed=1), vector_CE[[5, 1003, 2000]]])
    whole = ask(cut(label_C, vector_CE, lambda _: None, 1), query_QE, None, 10, 10)
    apart = ask(cut(label_C, vector_CE, lambda _: None, parts), query_QE, None, 10, 10)
    np.testing.assert_array_equal(whole[0], apart[0])
    np.testing.assert_array_equal(whole[1], apart[1])


def test_comparing_all_classes_finds_the_classes_of_largest_cosine_and_of_equal_ones_the_lower_label(classes):
    label_C, vector_CE = classes
    query_QE = np.concatenate([clustered(150, seed=1), vector_CE[[5, 1003, 2000]]])
    label_QK, score_QK = ask(cut(label_C, vector_CE, lambda _: None, 3), query_QE, None, 10, 10)
    cosine_QC = np.array([RangeIndex(label_C, vector_CE, None)._exact(query_QE, np.tile(np.arange(3000), (153, 1)))])[0]
    order_QK = np.lexsort((np.tile(label_C, (153, 1)), -cosine_QC), axis=1)[:, :10]
    np.testing.assert_array_equal(label_QK, label_C[order_QK])
    np.testing.assert_allclose(score_QK, np.take_along_axis(query_QE @ vector_CE.T, order_QK, 1), atol=1e-6)
    assert label_QK[-1].tolist() == label_C[1000:1010].tolist()


@pytest.mark.parametrize("probes", [1, 6])
def test_searching_cells_gives_the_same_for_any_number_of_ranges(classes, trained, probes):
    label_C, vector_CE = classes
    query_QE = np.concatenate([clustered(150, seed=1), vector_CE[[5, 1003, 2000]]])
    lists = probed_lists(trained, query_QE, probes)
    found = [
        ask(cut(label_C, vector_CE, lambda v: class_search.filled(trained, v), parts), query_QE, lists, 20, 10)
        for parts in (1, 2, 7)
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0][0], other[0])
        np.testing.assert_array_equal(found[0][1], other[1])


def test_searching_all_cells_finds_nearly_all_nearest_classes(classes, trained):
    label_C, vector_CE = classes
    query_QE = clustered(150, seed=1)
    ranges = cut(label_C, vector_CE, lambda v: class_search.filled(trained, v), 2)
    true_QK, true_score_QK = ask(ranges, query_QE, None, 10, 10)
    found_QK, score_QK = ask(ranges, query_QE, probed_lists(trained, query_QE, 40), 20, 10)
    assert recall(found_QK, true_QK) > 0.99
    assert recall(ask(ranges, query_QE, probed_lists(trained, query_QE, 1), 20, 10)[0], true_QK) < 0.9
    same_QK = found_QK == true_QK
    np.testing.assert_array_equal(score_QK[same_QK], true_score_QK[same_QK])  # exact, not those of 8 bits


@pytest.mark.parametrize("probes", [None, 6])
def test_ranges_that_are_joined_answer_as_they_did_apart(classes, trained, probes):
    label_C, vector_CE = classes
    query_QE = clustered(150, seed=1)
    lists = probes and probed_lists(trained, query_QE, probes)

    def ranges():
        return cut(label_C, vector_CE, lambda v: class_search.filled(trained, v), 4)

    together = ask([class_search.joined(ranges())], query_QE, lists, 20, 10)
    for found, apart in zip(together, ask(ranges(), query_QE, lists, 20, 10), strict=True):
        np.testing.assert_array_equal(found, apart)


def test_fewer_classes_than_are_asked_for_leave_nothing():
    index = RangeIndex(np.array([4, 9]), clustered(2), None)
    label_QK, score_QK = merged([index.search(clustered(3), None, 5)], 5).best(5)
    assert sorted(label_QK[0, :2]) == [4, 9]
    assert (label_QK[:, 2:] == -1).all()
    assert np.isneginf(score_QK[:, 2:]).all()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("cells", [True, False])
def test_a_query_of_zeros_is_as_like_to_every_class_and_asks_for_few(classes, trained, parts, cells, monkeypatch):
    asked = []
    found = RangeIndex._found
    monkeypatch.setattr(RangeIndex, "_found", lambda self, *a: asked.append(len(a[0])) or found(self, *a))
    query_QE = np.stack([np.zeros(WIDTH), classes[1][17], np.zeros(WIDTH)]).astype(np.float32)
    ranges = cut(*classes, lambda vector_CE: class_search.filled(trained, vector_CE) if cells else None, parts)
    lists = probed_lists(trained, query_QE, 2) if cells else None
    label_QK, score_QK = ask(ranges, query_QE, lists, 10, 5)
    np.testing.assert_array_equal(label_QK[[0, 2]], [classes[0][:5]] * 2)
    assert (score_QK[[0, 2]] == 0).all()
    assert label_QK[1, 0] == classes[0][17]
    assert set(asked) == {1}


def test_many_queries_that_cannot_decide_are_asked_in_blocks_and_answered_alike(classes, monkeypatch):
    label_C, vector_CE = classes
    query_QE = vector_CE[1000:1040]  # forty classes tie for each
    whole = ask(cut(label_C, vector_CE, lambda _: None, 1), query_QE, None, 10, 10)
    monkeypatch.setattr(compared_classes, "BLOCK_VALUES", 100)
    blocks = ask(cut(label_C, vector_CE, lambda _: None, 1), query_QE, None, 10, 10)
    np.testing.assert_array_equal(whole[0], blocks[0])
    assert (whole[0] == label_C[1000:1010]).all()


def test_a_range_without_classes_answers_nothing():
    empty = RangeIndex(np.empty(0, np.int32), np.empty((0, WIDTH), np.float32), None)
    full = RangeIndex(np.array([4, 9]), clustered(2), None)
    together = merged([empty.search(clustered(3), None, 2), full.search(clustered(3), None, 2)], 2).best(2)
    assert (np.sort(together[0], axis=1) == [4, 9]).all()
    assert np.isnan(empty.embeddings(np.array([4]))).all()


def test_embeddings_are_those_of_the_labels_and_nan_for_classes_that_are_not_there():
    vector_CE = clustered(3)
    found_NE = RangeIndex(np.array([2, 5, 11]), vector_CE, None).embeddings(np.array([11, 3, 2, 12]))
    np.testing.assert_array_equal(found_NE[[0, 2]], vector_CE[[2, 0]])
    assert np.isnan(found_NE[[1, 3]]).all()


def test_keys_sort_by_falling_score_then_label_and_come_back_as_they_were():
    rng = np.random.default_rng(0)
    label_QX = np.stack([rng.permutation(200) for _ in range(20)]).astype(np.int32)
    score_QX = rng.choice([-1.0, -0.5, -0.0, 0.0, 1e-30, 0.25, 1.0], (20, 200)).astype(np.float32)
    label_QX[:, 0] = -1
    got_label, got_score = unpacked(np.sort(packed(label_QX, score_QX), axis=1), 200)
    order_QX = np.lexsort((label_QX, -score_QX, label_QX < 0), axis=1)
    np.testing.assert_array_equal(got_label, np.take_along_axis(label_QX, order_QX, 1))
    np.testing.assert_array_equal(got_score[:, :-1], np.take_along_axis(score_QX, order_QX, 1)[:, :-1])
    assert np.isneginf(got_score[:, -1]).all()


def test_the_own_class_is_left_out_of_its_neighbours():
    label_QK = np.array([[5, 3, 8], [1, 7, 2]])
    score_QK = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]])
    label, score = without(label_QK, score_QK, np.array([3, 9]))
    assert label.tolist() == [[5, 8], [1, 7]]
    assert score.tolist() == [[0.9, 0.7], [0.6, 0.5]]


def test_the_training_sample_of_a_class_does_not_depend_on_the_others():
    label_C = np.arange(0, 200_000, 2)
    taken_C = class_search.training_sample(3, label_C, len(label_C))
    part = class_search.training_sample(3, label_C[500:900], len(label_C))
    np.testing.assert_array_equal(part, taken_C[500:900])
    wanted = class_search.TRAINING_PER_LIST * class_search.lists_for(len(label_C))
    assert 0.9 * wanted < taken_C.sum() < 1.1 * wanted


def test_a_card_finds_candidates_and_the_scores_are_computed_as_ever(classes, trained, monkeypatch):
    """Without a card: what goes there answers from here."""
    import faiss

    sent = []
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda *a: sent.append(a[0]) or a[2], raising=False)
    label_C, vector_CE = classes
    query_QE = clustered(20, seed=1)
    codes = class_search.filled(trained, vector_CE)
    on_card = RangeIndex(label_C, vector_CE, codes).to_gpu("resources")
    here = RangeIndex(label_C, vector_CE, codes)
    lists = probed_lists(trained, query_QE, 4)
    for asked in (None, lists):
        np.testing.assert_array_equal(*(ask([i], query_QE, asked, 20, 10)[0] for i in (on_card, here)))
    assert sent == ["resources", "resources"]
