"""Classes of the shipped fonts are honest: no two look the same, and what looks the same is one class."""

import time
import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageFont

from cleanscale.datasets import glyph_fonts
from cleanscale.datasets.glyph_fonts import FONTS, characters_of, font_path, fonts_that_draw, glyph_classes


@pytest.fixture(scope="module", autouse=True)
def build_seconds() -> float:
    """Seconds of this process to find the classes: 2.3 on one core, 0 when another module's test came first."""
    start = time.process_time()
    glyph_classes()
    return time.process_time() - start


@pytest.fixture(scope="module")
def class_of() -> dict[str, int]:
    return {chr(code): place for place, members in enumerate(glyph_classes().members) for code in members}


@pytest.mark.parametrize("same", ["AΑА", "oοо", "OΟО", "cсϲ", "Eꓰ", "●⬤"])
def test_characters_with_the_same_outline_are_one_class(class_of, same):
    here = [class_of[character] for character in same if character in class_of]
    assert len(here) >= 2
    assert len(set(here)) == 1


def test_different_letters_are_different_classes(class_of):
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789ΔΩжЯאش"
    assert len({class_of[letter] for letter in letters}) == len(letters)


def test_no_two_classes_look_the_same_at_64_pixels_in_the_default_font():
    font = ImageFont.truetype(str(font_path("DejaVuSans")), 64, layout_engine=ImageFont.Layout.BASIC)
    seen: dict[tuple, int] = {}
    for code in glyph_classes().codepoints:
        if code not in characters_of("DejaVuSans"):
            continue
        mask = font.getmask(chr(code), "L")
        picture = Image.frombytes("L", mask.size, bytes(mask)).crop(mask.getbbox())
        twin = seen.setdefault((picture.size, picture.tobytes()), code)
        assert twin == code, f"{chr(twin)} and {chr(code)}"


def test_about_five_thousand_classes_in_little_time(build_seconds):
    assert 5000 <= len(glyph_classes()) <= 5700
    assert build_seconds < 6.0


def test_every_class_has_a_picture_a_name_and_a_font():
    classes = glyph_classes()
    assert len(set(classes.names())) == len(classes)
    assert (classes.unit_CP.max(axis=1) > 60).all()
    for code in classes.codepoints[::25]:
        assert fonts_that_draw(code)
        assert not unicodedata.category(chr(code)).startswith(("C", "Z", "M"))


def test_placeholder_fonts_are_left_out():
    assert not any(font.startswith(("LastResort", "cm", "STIXNonUni")) for font in FONTS)


def test_first_thousand_classes_hold_no_near_twins():
    unit_CP = glyph_classes().unit_CP[:1000].astype(np.float32)
    unit_CP /= np.linalg.norm(unit_CP, axis=1, keepdims=True)
    likeness = unit_CP @ unit_CP.T
    np.fill_diagonal(likeness, 0.0)
    assert likeness.max() < 0.97


def test_similar_pairs_do_not_depend_on_the_block():
    rng = np.random.default_rng(0)
    picture_GP = rng.integers(0, 256, (60, 16)).astype(np.uint8)
    slow = []
    for i in range(60):
        for j in range(i + 1, 60):
            one, other = picture_GP[i].astype(float), picture_GP[j].astype(float)
            if one @ other >= 0.8 * np.sqrt((one @ one) * (other @ other)):
                slow.append((i, j))
    for block in (7, 60, 1024):
        found = glyph_fonts.similar_pairs(picture_GP, 0.8, block)
        assert sorted(map(tuple, found.tolist())) == slow


def test_merged_classes_are_the_connected_parts():
    lowest = glyph_fonts.merged(np.array([1, 2, 3, 4, 5, 9]), np.array([[3, 9], [2, 3], [5, 4]]))
    assert lowest == {1: 1, 2: 2, 3: 2, 9: 2, 4: 4, 5: 4}
