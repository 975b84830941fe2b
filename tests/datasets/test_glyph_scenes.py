import numpy as np
import pytest

from cleanscale.datasets.glyph_scenes import num_scenes, scene_files, scene_labels, scene_rows, scene_verification
from cleanscale.datasets.glyphs import GlyphsSettings

SETTINGS = GlyphsSettings(
    classes=12, per_image=3, train_per_class=60, test_per_class=5, size=24, wrong=0.3, missing=0.2, verified_images=40
)


@pytest.fixture(scope="module")
def scenes():
    return scene_labels(SETTINGS, 0, "train")


def pairs(lists) -> set[tuple[int, int]]:
    return set(zip(lists.image_E.tolist(), lists.label_E.tolist(), strict=True))


def test_labels_are_missing_and_false_as_often_as_asked(scenes):
    true, noisy = pairs(scenes.true), pairs(scenes.noisy)
    assert len(true - noisy) / len(true) == pytest.approx(SETTINGS.missing, abs=0.05)
    rate_C = [np.mean([pair not in true for pair in noisy if pair[1] == label]) for label in range(SETTINGS.classes)]
    assert np.mean(rate_C) == pytest.approx(SETTINGS.wrong, abs=0.05)
    assert np.min(rate_C) < 0.05
    assert np.max(rate_C) > 0.5


def test_every_picture_has_one_to_three_characters_and_a_label(scenes):
    assert set(scenes.true.length_N) == {1, 2, 3}
    assert scenes.noisy.length_N.min() >= 1
    assert len(scenes.true) == num_scenes(SETTINGS, "train") == 360


def test_test_pictures_have_right_labels_and_nobody_checks_them():
    test = scene_labels(SETTINGS, 0, "test")
    assert pairs(test.true) == pairs(test.noisy)
    assert not test.checked_N.any()


def test_rows_are_the_same_in_whatever_pieces_they_are_made():
    whole = scene_rows(SETTINGS, 0, "train", 0, 6)
    assert scene_rows(SETTINGS, 0, "train", 4, 6).equals(whole.slice(4))
    assert whole["image"][0].as_py().startswith(b"\x89PNG")
    assert {f.split for f in scene_files(SETTINGS)} == {"train", "test"}


def test_verification_says_everything_of_the_checked_pictures(scenes):
    table = scene_verification(SETTINGS, 0).to_pylist()
    row_of = {f"train-{row:07d}": row for row in range(360)}
    checked = {row_of[one["id"]] for one in table}
    assert len(checked) == scenes.checked_N.sum() == SETTINGS.verified_images
    right = {(row_of[one["id"]], one["label"]) for one in table if one["verified"] == 1}
    wrong = {(row_of[one["id"]], one["label"]) for one in table if one["verified"] == 0}
    true, noisy = pairs(scenes.true), pairs(scenes.noisy)
    assert right == {pair for pair in true if pair[0] in checked}
    assert wrong == {pair for pair in noisy - true if pair[0] in checked}
