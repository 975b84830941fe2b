import numpy as np

from cleanscale.maths.class_embeddings import ClassEmbeddings, cosine


def test_a_class_without_references_has_no_embedding():
    embeddings = ClassEmbeddings(np.array([2, 5], np.int32), np.array([[1.0, 0.0], [0.0, 1.0]], np.float32))
    found = embeddings.of(np.array([5, 2, 3, 9, 0]))
    np.testing.assert_array_equal(found[:2], [[0, 1], [1, 0]])
    assert np.isnan(found[2:]).all()


def test_cosines_stay_within_their_range():
    unit_NE = np.full((2, 3), 3**-0.5, np.float32) * 1.0001
    assert (np.abs(cosine(unit_NE, np.array([[1], [-1]]) * unit_NE)) <= 1).all()
