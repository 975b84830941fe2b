"""Permutations without memory."""

import numpy as np
import pytest

from cleanscale.maths.keyed_permutation import KeyedPermutation
from cleanscale.maths.keyed_random import Purpose


def permutation(length: int, key: int = 0, seed: int = 0) -> KeyedPermutation:
    return KeyedPermutation(length, seed, Purpose.GENERATED, key)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 64, 65, 1000, 4097])
def test_every_index_is_met_once_and_the_inverse_leads_back(length):
    there_M = permutation(length)(np.arange(length))
    assert np.array_equal(np.sort(there_M), np.arange(length))
    assert np.array_equal(permutation(length).inverse(there_M), np.arange(length))


def test_a_part_does_not_depend_on_what_else_is_computed():
    whole_M = permutation(100_000)(np.arange(100_000))
    assert np.array_equal(permutation(100_000)(np.arange(777, 900)), whole_M[777:900])


def test_keys_and_seeds_give_other_permutations_without_order():
    index_M = np.arange(10_000)
    made = [permutation(10_000, key, seed)(index_M) for key, seed in ((0, 0), (1, 0), (0, 1))]
    for there_M in made:
        assert abs(np.corrcoef(index_M, there_M)[0, 1]) < 0.05
    assert (made[0] == made[1]).mean() < 0.01 and (made[0] == made[2]).mean() < 0.01
