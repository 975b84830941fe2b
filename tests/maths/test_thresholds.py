import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanscale.maths.thresholds import best_threshold


def slow_error(score_N, right_N, class_N, threshold):
    """Mean over classes of the share of images that the threshold calls wrongly."""
    errors = []
    for c in np.unique(class_N):
        mine = class_N == c
        errors.append(np.mean((score_N[mine] >= threshold) != right_N[mine]))
    return np.mean(errors)


rows = st.lists(st.tuples(st.integers(-4, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=25)


@settings(max_examples=150, deadline=None)
@given(rows, st.sampled_from([0.0, 0.1, -0.25]))
def test_no_threshold_is_better(rows, prefer):
    score_N = np.array([r[0] / 4 for r in rows], np.float32)
    right_N, class_N = np.array([r[1] for r in rows]), np.array([r[2] for r in rows])
    threshold, error = best_threshold(score_N, right_N, class_N, prefer=prefer)
    assert error == pytest.approx(slow_error(score_N, right_N, class_N, threshold))
    tried = np.concatenate([np.unique(score_N), [np.inf]])
    assert error == pytest.approx(min(slow_error(score_N, right_N, class_N, t) for t in tried))


def test_classes_weigh_equally():
    # class 0 has many images and would pull the threshold to its side
    score_N = np.array([0.2] * 10 + [0.2, 0.8], np.float32)
    right_N = np.array([True] * 6 + [False] * 4 + [False, True])
    assert best_threshold(score_N, right_N, np.array([0] * 10 + [1, 1]))[0] == pytest.approx(0.5)


def test_with_only_right_or_only_wrong_images_it_stays_nearest_to_what_is_preferred():
    score_N, class_N = np.array([0.3, 0.05], np.float32), np.array([0, 1])
    assert best_threshold(score_N, np.array([True, True]), class_N, prefer=0.1)[0] == pytest.approx(0.05)
    above = best_threshold(score_N, np.array([False, False]), class_N, prefer=0.1)[0]
    assert above > 0.3
    assert not (score_N >= above).any()
