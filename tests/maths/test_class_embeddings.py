import numpy as np

from cleanscale.maths.class_embeddings import ClassEmbeddings, cosine, suggested


def test_a_class_without_references_has_no_embedding():
    embeddings = ClassEmbeddings(np.array([2, 5], np.int32), np.array([[1.0, 0.0], [0.0, 1.0]], np.float32))
    found = embeddings.of(np.array([5, 2, 3, 9, 0]))
    np.testing.assert_array_equal(found[:2], [[0, 1], [1, 0]])
    assert np.isnan(found[2:]).all()


def test_cosines_stay_within_their_range():
    unit_NE = np.full((2, 3), 3**-0.5, np.float32) * 1.0001
    assert (np.abs(cosine(unit_NE, np.array([[1], [-1]]) * unit_NE)) <= 1).all()


def test_the_nearest_other_class_is_never_the_own():
    rng = np.random.default_rng(0)
    embedding_CE = rng.normal(size=(6, 4)).astype(np.float32)
    embedding_CE /= np.linalg.norm(embedding_CE, axis=1, keepdims=True)
    classes = ClassEmbeddings(np.array([2, 3, 5, 8, 13, 21]), embedding_CE)
    near_N, cosine_N = classes.nearest_other(embedding_CE, classes.label_C)
    cosine_CC = embedding_CE @ embedding_CE.T
    np.fill_diagonal(cosine_CC, -2)
    np.testing.assert_array_equal(near_N, classes.label_C[cosine_CC.argmax(axis=1)])
    np.testing.assert_allclose(cosine_N, cosine_CC.max(axis=1), atol=1e-6)
    alone = ClassEmbeddings(np.array([4]), embedding_CE[:1])
    assert alone.nearest_other(embedding_CE[:1], np.array([4]))[0].tolist() == [-1]


def test_the_nearest_class_is_suggested_where_the_classifier_is_unsure_and_it_is_clearly_nearer():
    found_N = np.array([1, 1, 1, 1, -1, 1])
    log_probability_N = np.log([0.3, 0.9, 0.3, 0.3, 0.3, 0.3])
    found_relevance_N = np.array([0.5, 0.5, 0.5, np.nan, np.nan, 0.5])
    near_N = np.array([7, 7, 7, 7, 7, -1])
    near_relevance_N = np.array([0.6, 0.6, 0.52, 0.1, 0.1, np.nan])
    label_N, relevance_N = suggested(found_N, log_probability_N, found_relevance_N, near_N, near_relevance_N)
    assert label_N.tolist() == [7, 1, 1, 7, 7, 1]
    np.testing.assert_allclose(relevance_N, [0.6, 0.5, 0.5, 0.1, 0.1, 0.5], rtol=1e-6)
