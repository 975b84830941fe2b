"""A plan shares its budget evenly over classes, asks uncertain images of each, and is the same however it is cut."""

import numpy as np
import pytest

from cleanscale.maths.verification_plan import chances, images_by_class, labels_by_class, uncertain_images


def one_at_a_time(verified_C, unverified_C, budget) -> list[int]:
    """Slow twin: always one more of the class that has the fewest. Returns what classes come to, sorted."""
    total_C, left_C = np.array(verified_C), np.array(unverified_C)
    for _ in range(budget):
        if not left_C.any():
            break
        least = np.flatnonzero(left_C)[total_C[left_C > 0].argmin()]
        total_C[least] += 1
        left_C[least] -= 1
    return sorted(total_C.tolist())


@pytest.mark.parametrize("budget", [0, 1, 3, 17, 60, 10_000])
def test_classes_come_to_equally_many_labels_counting_those_they_have(budget):
    rng = np.random.default_rng(budget)
    verified_C, unverified_C = rng.integers(0, 6, 20), rng.integers(0, 9, 20)
    asked_C = labels_by_class(np.arange(20), verified_C, unverified_C, budget)
    assert (asked_C <= unverified_C).all()
    assert asked_C.sum() == min(budget, unverified_C.sum())
    assert sorted((verified_C + asked_C).tolist()) == one_at_a_time(verified_C, unverified_C, budget)


def test_a_budget_smaller_than_the_classes_asks_one_label_of_classes_without_any():
    verified_C = np.array([0, 5, 0, 0, 1, 0, 0])
    asked_C = labels_by_class(np.arange(7), verified_C, np.full(7, 9), 3)
    assert sorted(asked_C.tolist()) == [0, 0, 0, 0, 1, 1, 1]
    assert (verified_C[asked_C > 0] == 0).all()


def test_at_most_so_many_classes_are_asked_and_the_least_verified_of_them():
    verified_C = np.array([4, 0, 2, 0, 7, 9])
    asked_C = labels_by_class(np.arange(6), verified_C, np.array([50, 50, 50, 0, 50, 50]), 40, classes=3)
    assert np.flatnonzero(asked_C).tolist() == [0, 1, 2]
    assert asked_C.sum() == 40
    assert len(set((verified_C + asked_C)[:3].tolist())) <= 2


def test_another_seed_asks_other_classes_and_the_same_seed_the_same():
    plans = [
        labels_by_class(np.arange(1000), np.zeros(1000), np.full(1000, 5), 30, seed=seed).tolist() for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_a_million_classes_take_no_product_of_classes():
    asked_C = labels_by_class(np.arange(10**6), np.zeros(10**6, np.int64), np.full(10**6, 20), 3_200_000)
    assert asked_C.sum() == 3_200_000
    assert set(np.unique(asked_C)) == {3, 4}


def test_an_image_is_asked_as_often_as_it_is_uncertain():
    probability_N = np.array([0.02, 0.5, 0.9, 0.99, 0.3, 0.999])
    hits_N = np.zeros(6)
    for seed in range(4000):
        hits_N[uncertain_images(probability_N, 2, np.random.default_rng(seed))] += 1
    expected_N = chances(probability_N * (1 - probability_N), 2)
    np.testing.assert_allclose(hits_N / 4000, expected_N, atol=0.03)


def test_several_labels_of_a_class_are_spread_over_the_probability():
    probability_N = np.random.default_rng(0).permutation(np.linspace(0.01, 0.99, 400))
    for seed in range(20):
        chosen_N = probability_N[uncertain_images(probability_N, 9, np.random.default_rng(seed))]
        assert len(chosen_N) == 9
        assert 3 <= (chosen_N < 0.5).sum() <= 6


def test_a_detector_that_is_certain_of_everything_leaves_an_even_draw():
    hits_N = np.zeros(8)
    for seed in range(3000):
        hits_N[uncertain_images(np.tile([0.0, 1.0], 4), 2, np.random.default_rng(seed))] += 1
    np.testing.assert_allclose(hits_N / 3000, 0.25, atol=0.03)


@pytest.mark.parametrize("picks", [0, 1, 5, 6, 7])
def test_every_image_is_asked_once_at_most(picks):
    rng = np.random.default_rng(picks)
    for _ in range(50):
        chosen = uncertain_images(np.array([1.0, 0.0, 0.5, 1.0, 0.999, 0.2]), picks, rng)
        assert len(set(chosen.tolist())) == len(chosen) == min(picks, 6)


def test_chances_add_up_and_none_is_above_one():
    chance_N = chances(np.array([100.0, 30.0, 1.0, 1.0, 1.0]), 3)
    np.testing.assert_allclose(chance_N, [1, 1, 1 / 3, 1 / 3, 1 / 3])


def test_what_is_asked_of_a_class_does_not_depend_on_the_classes_it_comes_with():
    label_N = np.repeat([2, 5, 9], [30, 40, 50])
    probability_N = np.random.default_rng(1).random(120)
    label_C, asked_C = np.array([2, 5, 9]), np.array([4, 0, 7])
    together = images_by_class(label_N, probability_N, label_C, asked_C, seed=3)
    alone = images_by_class(label_N[70:], probability_N[70:], label_C[2:], asked_C[2:], seed=3)
    np.testing.assert_array_equal(together[4:], 70 + alone)
    assert (label_N[together] == np.repeat([2, 9], [4, 7])).all()
