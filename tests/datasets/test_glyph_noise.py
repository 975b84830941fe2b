"""Wrong labels of glyphs: exact rates, balanced noisy labels, look-alikes that are alike."""

import numpy as np
import pytest

from cleanscale.datasets.glyph_fonts import glyph_classes
from cleanscale.datasets.glyph_noise import (
    CONFUSING,
    NOISE_FREE,
    POINTLESS,
    LookAlikes,
    drawn_look_alikes,
    look_alikes,
    noisy_labels,
    verify,
)

CLASSES, PER_CLASS = 100, 40


@pytest.fixture(scope="module")
def alike() -> LookAlikes:
    return look_alikes(glyph_classes().unit_CP[:CLASSES])


@pytest.mark.parametrize(("wrong", "share"), [(0.3, 0.5), (0.0, 0.5), (0.61, 0.0), (0.2, 1.0), (0.123, 0.4)])
def test_rates_are_exact(alike, wrong, share):
    labels = noisy_labels(5, 0, alike, PER_CLASS, wrong, share)
    num_wrong = round(wrong * CLASSES * PER_CLASS)
    assert (labels.noise_type_N != NOISE_FREE).sum() == num_wrong
    assert (labels.noise_type_N == CONFUSING).sum() == round(share * num_wrong)
    assert np.array_equal(labels.noise_type_N != NOISE_FREE, labels.label_N != labels.true_label_N)


def test_every_noisy_label_has_the_same_number_of_pictures(alike):
    labels = noisy_labels(5, 0, alike, PER_CLASS, 0.3, 0.5)
    assert (np.bincount(labels.label_N, minlength=CLASSES) == PER_CLASS).all()


def test_confusing_labels_name_a_look_alike_and_pointless_ones_any_class(alike):
    labels = noisy_labels(5, 0, alike, PER_CLASS, 0.5, 0.5)
    for label, true, kind in zip(labels.label_N, labels.true_label_N, labels.noise_type_N, strict=True):
        if kind == CONFUSING:
            assert true in alike.class_CL[label][alike.share_CL[label] > 0]
    pointless = labels.noise_type_N == POINTLESS
    difference = (labels.true_label_N - labels.label_N)[pointless] % CLASSES
    count = np.bincount(difference, minlength=CLASSES)[1:]
    assert count.min() > 0  # 1,000 draws over 99 differences
    assert count.max() < 4 * count.mean()


def test_look_alikes_are_sparse_and_more_alike_than_the_median_class(alike):
    picture_CP = glyph_classes().unit_CP[:CLASSES].astype(float)
    picture_CP -= picture_CP.mean(axis=0)
    picture_CP /= np.linalg.norm(picture_CP, axis=1, keepdims=True)
    likeness = picture_CP @ picture_CP.T
    for one in range(CLASSES):
        others = np.delete(likeness[one], one)
        used = alike.share_CL[one] > 0
        assert alike.class_CL[one, 0] == np.argmax(np.where(np.arange(CLASSES) == one, -2.0, likeness[one]))
        assert 1 <= used.sum() <= 3
        assert one not in alike.class_CL[one]
        assert (alike.cosine_CL[one][used] > np.median(others)).all()
    np.testing.assert_allclose(alike.share_CL.sum(axis=1), 1.0)


def test_look_alikes_do_not_depend_on_the_block(alike):
    again = look_alikes(glyph_classes().unit_CP[:CLASSES], block=33)
    assert np.array_equal(again.class_CL, alike.class_CL)


def test_look_alikes_are_drawn_by_their_shares():
    alike = LookAlikes(np.array([[1, 2, 3]]), np.array([[0.6, 0.25, 0.15]]), np.ones((1, 3), np.float32))
    drawn = drawn_look_alikes(np.random.default_rng(0), alike, np.zeros(20_000, np.int64))
    np.testing.assert_allclose(np.bincount(drawn)[1:] / 20_000, [0.6, 0.25, 0.15], atol=0.015)


def test_two_classes_are_enough():
    alike = look_alikes(glyph_classes().unit_CP[:2])
    labels = noisy_labels(0, 0, alike, 10, 0.5, 0.5)
    assert (labels.label_N != labels.true_label_N).sum() == 10


def test_verified_are_the_asked_number_of_the_asked_number_of_noisy_label_classes(alike):
    labels = verify(noisy_labels(5, 0, alike, PER_CLASS, 0.3, 0.5), 5, 0, CLASSES, classes=7, per_class=12)
    looked = labels.verified_N >= 0
    per_label = np.bincount(labels.label_N[looked], minlength=CLASSES)
    assert sorted(per_label)[-8:] == [0] + [12] * 7
    assert per_label.sum() == 84
    right = labels.label_N == labels.true_label_N
    assert np.array_equal(labels.verified_N[looked] == 1, right[looked])
