import numpy as np
import pytest

from cleanscale.maths import compared_classes
from cleanscale.maths.class_embeddings import unit
from cleanscale.maths.class_graph import ClassGraph

CLASSES, WIDTH, IMAGES = 40, 6, 50
ABSENT = 7  # a class without embedding


def random_graph(neighbours: int) -> ClassGraph:
    vector_CE = unit(np.random.default_rng(0).standard_normal((CLASSES, WIDTH)))
    vector_CE[ABSENT] = 0
    cosine_CC = vector_CE @ vector_CE.T
    np.fill_diagonal(cosine_CC, -2)
    cosine_CC[:, ABSENT] = -2
    neighbour_CK = np.argsort(-cosine_CC, axis=1)[:, :neighbours].astype(np.int32)
    neighbour_CK[ABSENT] = -1
    return ClassGraph(vector_CE, neighbour_CK)


def slow_nearest(graph: ClassGraph, query_E: np.ndarray, own: int, start_S: list[int]) -> tuple[int, float]:
    def best(classes: set[int]) -> tuple[float, int]:
        return max(((float(query_E @ graph.vector_CE[c]), c) for c in classes - {own, -1}), default=(-np.inf, -1))

    def neighbours(classes: set[int]) -> set[int]:
        return {int(n) for c in classes - {-1} for n in graph.neighbour_CK[c]}

    first = best(set(start_S) | neighbours(set(start_S)))
    cosine, label = max(first, best(neighbours({first[1]})))
    return label, cosine


@pytest.fixture
def asked():
    random = np.random.default_rng(1)
    start_XS = random.integers(-1, CLASSES, (IMAGES, 2))
    start_XS[start_XS == ABSENT] = 0
    start_XS[0] = -1
    return unit(random.standard_normal((IMAGES, WIDTH))), random.integers(0, CLASSES, IMAGES), start_XS


def test_the_best_is_that_of_plain_loops_however_the_images_are_cut(asked, monkeypatch):
    graph = random_graph(3)
    query_XE, own_X, start_XS = asked
    label_X, cosine_X = graph.nearest_other(query_XE, own_X, start_XS)
    for x in range(IMAGES):
        label, cosine = slow_nearest(graph, query_XE[x], own_X[x], start_XS[x].tolist())
        assert label_X[x] == label
        np.testing.assert_allclose(cosine_X[x], cosine if label >= 0 else np.nan, rtol=1e-5)
    assert label_X[0] == -1  # nothing to start from
    monkeypatch.setattr(compared_classes, "BLOCK_VALUES", 1)
    np.testing.assert_array_equal(graph.nearest_other(query_XE, own_X, start_XS)[0], label_X)


def test_with_all_classes_as_neighbours_nothing_is_nearer(asked):
    graph = random_graph(CLASSES - 2)
    query_XE, own_X, start_XS = asked
    label_X, cosine_X = graph.nearest_other(query_XE[1:], own_X[1:], np.maximum(start_XS[1:], 0))
    cosine_XC = query_XE[1:] @ graph.vector_CE.T
    cosine_XC[np.arange(len(label_X)), own_X[1:]] = -2
    cosine_XC[:, ABSENT] = -2
    np.testing.assert_array_equal(label_X, cosine_XC.argmax(axis=1))
    np.testing.assert_allclose(cosine_X, cosine_XC.max(axis=1), rtol=1e-5)


def test_a_class_beyond_the_last_with_images_is_none_to_start_from(asked):
    query_XE, own_X, start_XS = asked
    graph = random_graph(5)
    beyond_XS = np.where(start_XS == -1, CLASSES + 3, start_XS)
    for one, other in zip(
        graph.nearest_other(query_XE, own_X, beyond_XS), graph.nearest_other(query_XE, own_X, start_XS), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert np.isnan(graph.embeddings(np.array([CLASSES]))).all()


def test_a_class_without_embedding_has_none():
    embedding_NE = random_graph(3).embeddings(np.array([ABSENT, 3, -1]))
    assert np.isnan(embedding_NE).all(axis=1).tolist() == [True, False, True]
