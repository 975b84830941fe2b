"""Every figure is a picture that shows something, for few, many and no classes."""

import io

import numpy as np
import pytest
from PIL import Image

from cleanscale.maths import detection_metrics as dm
from cleanscale.maths import intervals as iv
from cleanscale.reporting import figures


def opened(png):
    """The picture as an array, after checking that it is a PNG, sensibly large and not blank."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert 250 <= min(image.shape[:2]) <= max(image.shape[:2]) <= 2500
    assert (image < 128).mean() > 0.001
    return image


def has_colour(image, colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(image.astype(int) - rgb).max(axis=2) < 12).sum() > 20


def judged(images, classes):
    rng = np.random.default_rng(0)
    label_N, wrong_N = rng.integers(classes, size=images), rng.random(images) < 0.3
    score_N = rng.normal(size=images) - 2 * wrong_N
    decisions = {
        "transfer": (score_N < -1, score_N),
        "cleannet": (score_N < 0, score_N + rng.normal(size=images)),
        "naive": (np.zeros(images, bool), None),
    }
    held_out_N = label_N % 2 == 0
    return label_N, wrong_N, decisions, {"held_out_classes": held_out_N, "verified_classes": ~held_out_N}


@pytest.mark.parametrize("draw", [figures.roc, figures.precision_recall])
def test_curves_show_each_detector_in_its_colour(draw):
    _, wrong_N, decisions, groups = judged(500, 10)
    image = opened(draw(wrong_N, decisions, groups))
    assert has_colour(image, figures.BLUE)
    assert has_colour(image, figures.ORANGE)
    assert image.shape[1] > image.shape[0]  # two panels


@pytest.mark.parametrize("draw", [figures.roc, figures.precision_recall])
def test_curves_are_drawn_without_wrong_labels_and_without_images(draw):
    _, wrong_N, decisions, _ = judged(20, 4)
    nothing = opened(draw(np.zeros(20, bool), decisions, {"held_out_classes": np.zeros(20, bool)}))
    assert not has_colour(nothing, figures.ORANGE), "no curve where there is nothing to find"
    everything = opened(draw(wrong_N, decisions, {}))
    assert has_colour(everything, figures.ORANGE), "without groups, all images are one"


def test_thinning_keeps_a_curves_ends_and_area():
    rng = np.random.default_rng(1)
    wrong_N = rng.random(40_000) < 0.5
    curve = dm.roc_curve(wrong_N, rng.normal(size=40_000) - wrong_N)
    thin = figures._thin(curve)
    assert len(thin.x_T) <= 2001 < len(curve.x_T)
    assert (thin.x_T[0], thin.y_T[0], thin.x_T[-1], thin.y_T[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(thin.y_T, thin.x_T) == pytest.approx(np.trapezoid(curve.y_T, curve.x_T), abs=1e-3)


def test_reliability_is_drawn_for_many_few_and_no_images():
    rng = np.random.default_rng(2)
    for images in (2000, 3, 0):
        probability_N = rng.random(images)
        image = opened(figures.reliability(rng.random(images) < probability_N, probability_N))
        assert has_colour(image, figures.BLUE) == (images > 0)


@pytest.mark.parametrize(("images", "classes"), [(500, 20), (60, 1), (40_000, 10_000), (0, 1)])
def test_error_per_class_is_drawn_for_any_number_of_classes(images, classes):
    label_N, wrong_N, decisions, groups = judged(images, classes)
    png = figures.error_per_class(label_N, wrong_N, decisions["transfer"][0], held_out_N=groups["held_out_classes"])
    image = opened(png)
    assert has_colour(image, figures.BLUE) == (images > 0)


def test_accuracy_is_drawn_for_one_round_several_and_none():
    rng = np.random.default_rng(3)
    one = iv.classification_report({"round_0": {"top1": rng.random(50) < 0.5}})["classification"]
    several = {f"round_{i}": {"top1": rng.random(50) < 0.5, "top5": rng.random(50) < 0.9} for i in range(3)}
    narrow = opened(figures.accuracy_by_round(one))
    wide = opened(figures.accuracy_by_round(iv.classification_report(several)["classification"]))
    assert wide.shape[1] > narrow.shape[1]
    none = opened(figures.accuracy_by_round({}))
    assert has_colour(wide, figures.BLUE)
    assert not has_colour(none, figures.BLUE)


def test_wilsons_interval_holds_the_share():
    share_B, images_B = np.array([0.0, 0.5, 1.0]), np.array([4, 400, 4])
    low_B, high_B = figures._wilson(share_B, images_B)
    np.testing.assert_allclose(low_B, [0, 0.4512, 0.5101], atol=1e-4)
    np.testing.assert_allclose(high_B, [0.4899, 0.5488, 1], atol=1e-4)
