import numpy as np

from cleanscale.treatments.relabel import Suggested, relabelled


def images(**changes) -> Suggested:
    """A label believed right; one called wrong with a suggestion; one without; one that somebody named otherwise."""
    known = Suggested(
        label_N=np.array([0, 1, 2, 3], np.int32),
        probability_correct_N=np.array([0.9, 0.2, 0.1, 0.0], np.float32),
        mislabeled_N=np.array([False, True, True, True]),
        suggested_N=np.array([-1, 5, -1, 6], np.int32),
        log_probability_N=np.log(np.array([0.7, 0.1, 0.2, 0.3], np.float32)),
        suggested_log_probability_N=np.log(np.array([0.2, 0.45, 0.3, 0.5], np.float32)),
        known_N=np.array([-1, -1, -1, 8], np.int32),
    )
    return known._replace(**changes)


def test_a_weight_is_the_probability_that_the_target_in_use_is_right():
    target_N, weight_N = relabelled(images())
    assert target_N.tolist() == [0, 5, 2, 8]
    # The label is wrong with 0.8, and then it is the suggested class with 0.45 of 0.9.
    np.testing.assert_allclose(weight_N, [0.9, 0.8 * 0.45 / 0.9, 0, 1], rtol=1e-6)


def test_a_label_that_surely_is_right_by_the_heads_gives_no_infinite_weight():
    _, weight_N = relabelled(images(log_probability_N=np.zeros(4, np.float32)))
    assert ((weight_N >= 0) & (weight_N <= 1)).all()


def test_what_somebody_called_wrong_without_a_name_gets_the_suggestion():
    target_N, weight_N = relabelled(images(known_N=np.array([-1, -2, -2, -2], np.int32)))
    assert target_N.tolist() == [0, 5, 2, 6]
    np.testing.assert_allclose(weight_N[3], 0.5 / 0.7, rtol=1e-6)
