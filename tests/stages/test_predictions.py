import numpy as np

from cleanscale.stages.predictions import Predictions


def test_a_label_among_the_k_most_probable_classes_is_a_hit():
    found = Predictions(np.arange(3), np.array([4, 1, 0]), np.array([[4, 2], [3, 1], [1, 2]]))
    assert found.correct(1).tolist() == [True, False, False]
    assert found.correct(2).tolist() == [True, True, False]
    assert found.correct(5).tolist() == [True, True, False]
