"""Budgets are nested, are judged on classes that they never draw from, and stop paying where it is sure."""

import numpy as np
import pytest

from cleanscale.maths.budgets import Budget, draw, evaluation_classes, largest, mean_accuracy, stops_paying
from cleanscale.maths.intervals import Measured

HOW = {"seed": 3, "repeat": 1, "folds": 4}
GRID = [Budget(share, labels) for share in (0.25, 0.5, 1.0) for labels in (1, 4, 50)]


@pytest.fixture(scope="module")
def verification() -> tuple[np.ndarray, np.ndarray]:
    """10 classes with 3 to 30 labels each, in no order."""
    rng = np.random.default_rng(0)
    label_V = rng.permutation(np.repeat(7 * np.arange(10), 3 * np.arange(1, 11)))
    return rng.permutation(1000)[: len(label_V)], label_V


def test_a_budget_that_contains_another_has_all_its_labels(verification):
    drawn = {budget: draw(*verification, budget, **HOW) for budget in GRID}
    for small in GRID:
        for big in GRID:
            if small.within(big):
                assert not (drawn[small] & ~drawn[big]).any()


def test_a_budget_has_as_many_classes_and_labels_as_it_says(verification):
    row_V, label_V = verification
    kept = np.setdiff1d(label_V, evaluation_classes(label_V, **HOW))
    for budget in GRID:
        label, count = np.unique(label_V[draw(row_V, label_V, budget, **HOW)], return_counts=True)
        assert len(label) == int(np.ceil(budget.classes * len(kept)))
        there = np.array([(label_V == one).sum() for one in label])
        np.testing.assert_array_equal(count, np.minimum(there, budget.labels_per_class))


def test_what_is_drawn_does_not_depend_on_the_order_of_the_labels(verification):
    row_V, label_V = verification
    order = np.random.default_rng(1).permutation(len(row_V))
    first = set(row_V[draw(row_V, label_V, GRID[4], **HOW)])
    assert set(row_V[order][draw(row_V[order], label_V[order], GRID[4], **HOW)]) == first


def test_repeats_are_judged_on_different_classes_which_they_never_draw_from(verification):
    row_V, label_V = verification
    judged = [evaluation_classes(label_V, seed=3, repeat=repeat, folds=4) for repeat in range(4)]
    assert sorted(np.concatenate(judged)) == sorted(set(label_V))
    for repeat, classes in enumerate(judged):
        drawn_V = draw(row_V, label_V, Budget(1.0, 99), seed=3, repeat=repeat, folds=4)
        assert not np.isin(label_V[drawn_V], classes).any()
        assert np.isin(label_V[~drawn_V], classes).all()


def test_repeats_draw_different_labels(verification):
    one, other = (draw(*verification, Budget(0.5, 2), seed=3, repeat=repeat, folds=4) for repeat in (0, 1))
    assert (one != other).any()


def test_mean_accuracy_and_its_interval_are_those_of_resampled_images():
    rng = np.random.default_rng(2)
    correct_RN, other_RN = rng.random((3, 400)) < 0.7, rng.random((3, 400)) < 0.6
    for other in (None, other_RN):
        gain_N = correct_RN.mean(0) - (0 if other is None else other.mean(0))
        slow_B = [100 * gain_N[rng.integers(400, size=400)].mean() for _ in range(4000)]
        found = mean_accuracy(correct_RN, other, resamples=4000)
        assert found.value == pytest.approx(100 * gain_N.mean())
        np.testing.assert_allclose([found.low, found.high], np.quantile(slow_B, [0.025, 0.975]), atol=0.4)
        assert found.n == 400


def gaps(**high: float) -> dict[Budget, Measured]:
    """Differences from the largest budget by name such as s4 (half of the classes, four labels): the interval's end."""
    share = {"q": 0.25, "h": 0.5, "a": 1.0}
    return {Budget(share[n[0]], int(n[1:])): Measured(value - 1, value - 2, value, 9) for n, value in high.items()}


def stop(difference: dict[Budget, Measured]) -> Budget | None:
    cost = {b: b.classes * b.labels_per_class for b in difference}
    return stops_paying(cost, difference, margin=1.0)


def test_more_verification_stops_paying_after_the_smallest_budget_that_is_surely_as_good():
    assert stop(gaps(q2=5.0, h2=2.0, h4=0.9, a4=0.5, a8=0.0)) == Budget(0.5, 4)


def test_a_lucky_small_budget_does_not_count_when_one_that_contains_it_did_worse():
    assert stop(gaps(q2=0.5, h2=2.0, h4=0.9, a4=0.5, a8=0.0)) == Budget(0.5, 4)


def test_a_bad_budget_of_another_shape_does_not_hide_a_good_one():
    assert stop(gaps(q8=4.0, a2=0.5, a4=0.5, a8=0.0)) == Budget(1.0, 2)


def test_without_a_sure_budget_nothing_is_said():
    assert stop({Budget(1.0, 4): Measured(None, None, None, 0)}) is None
    assert largest(GRID) == Budget(1.0, 50)
