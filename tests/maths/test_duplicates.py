import numpy as np
import pytest

from cleanscale.maths.duplicates import ClassSpread
from cleanscale.maths.references import ReferenceSets, make_references


def sets_of(*samples: np.ndarray, per_class: int = 50) -> ReferenceSets:
    label_N = np.repeat(np.arange(len(samples)) * 3, [len(s) for s in samples])
    return make_references(np.concatenate(samples), label_N, np.arange(len(label_N)), per_class=per_class, seed=0)


def drawn(number: int, centre: float, seed: int) -> np.ndarray:
    return (centre + np.random.default_rng(seed).normal(size=(number, 8))).astype(np.float32)


@pytest.mark.parametrize("per_class", [50, 8])  # the images themselves, and centroids of them
def test_halves_of_one_class_overlap_and_distant_classes_do_not(per_class):
    spread = ClassSpread.of(
        sets_of(drawn(40, 0, 0), drawn(30, 0, 1), drawn(30, 0.7, 2), drawn(30, 9, 3), per_class=per_class)
    )
    overlap_P, _ = spread.pairs(np.array([0, 0, 0]), np.array([3, 6, 9]))
    assert overlap_P[0] > 0.85
    assert 0.3 < overlap_P[1] < 0.75
    assert overlap_P[2] < 0.1


def test_of_many_images_one_is_surer_than_of_few():
    few = ClassSpread.of(sets_of(drawn(4, 0, 0), drawn(4, 0, 1))).pairs(np.array([0]), np.array([3]))
    many = ClassSpread.of(sets_of(drawn(400, 0, 0), drawn(400, 0, 1))).pairs(np.array([0]), np.array([3]))
    assert few[1] < 0.6
    assert many[1] > 0.85


def test_classes_of_one_image_say_nothing():
    spread = ClassSpread.of(sets_of(drawn(1, 0, 0), drawn(1, 0, 1)))
    assert spread.pairs(np.array([0]), np.array([3]))[1] == 0


def test_the_order_of_a_pair_and_the_other_classes_do_not_matter():
    samples = [drawn(20, 0, 0), drawn(30, 0.5, 1), drawn(10, 1, 2)]
    together = ClassSpread.of(sets_of(*samples))
    np.testing.assert_array_equal(
        together.pairs(np.array([0]), np.array([3])), together.pairs(np.array([3]), np.array([0]))
    )
    parts = [ClassSpread.of(sets_of(*samples).select(np.array(labels))) for labels in ([0, 3], [6])]
    apart = ClassSpread.concatenate(parts)
    for found, other in zip(
        together.pairs(np.array([0]), np.array([6])), apart.pairs(np.array([0]), np.array([6])), strict=True
    ):
        np.testing.assert_allclose(found, other, rtol=1e-6)
