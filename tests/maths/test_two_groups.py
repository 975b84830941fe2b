import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cleanscale.maths.two_groups import best_split


def squares_within(value_N, threshold):
    groups = [value_N[value_N <= threshold], value_N[value_N > threshold]]
    return sum(((group - group.mean()) ** 2).sum() for group in groups if len(group))


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=25))
def test_no_other_threshold_leaves_less_within_the_groups(values):
    value_N = np.array(values, float)
    every = [squares_within(value_N, threshold) for threshold in value_N]
    assert squares_within(value_N, best_split(value_N)) <= min(every) + 1e-9


def test_the_split_is_midway_between_the_groups():
    assert best_split(np.array([9.0, 1.0, 0.0, 10.0])) == 5.0


def test_equal_values_are_one_group():
    assert best_split(np.full(4, 3.0)) == 3.0
