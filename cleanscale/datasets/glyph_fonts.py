"""Characters of the fonts that matplotlib ships (DejaVu, STIX), as classes of an image data set.

A class is a character identity. Characters that look the same but for place and size (A, Greek Alpha, Cyrillic A; the
dashes; dots at different heights) are one class, because no picture could tell them apart.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageFilter, ImageFont

from cleanscale.errors import StageError
from cleanscale.maths.keyed_random import Purpose, hash_rows

# C classes, G (font, character) pairs, P pixels of a unit picture

# In the regular fonts it is decided what looks the same; the other fonts only draw.
REGULAR_FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
# Left out: LastResort (placeholders for all of Unicode), cm* (TeX encodings: the character is not what is drawn),
# STIXNonUni (private use), STIXSiz* (parts of tall brackets).
FONTS = (
    *REGULAR_FONTS,
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)
# Control, private, unassigned, space and combining characters have no picture of their own.
NO_PICTURE = ("C", "Z", "M")
UNIT_SIDE = 24
SAME = 0.99  # cosine of unit pictures from which two characters are one class
# Two classes are near twins, hard to tell apart in small pictures of random pen and stretch, when the cosine of
# their unit pictures is at least TWINS, or of their stretched pictures STRETCHED_TWINS (v and V, 0 and O). Both set
# by looking at pairs.
TWINS = 0.95
STRETCHED_TWINS = 0.965
ASPECT_SPREAD = 1.6  # stretched pictures are compared only where the ratio of the two aspects is smaller


@dataclasses.dataclass(frozen=True)
class FontPictures:
    """What a font draws, in two forms that leave out place and size."""

    code_G: np.ndarray  # int64 [G] codepoints, ascending
    unit_GP: np.ndarray  # uint8 [G, P] scaled to the frame
    stretched_GP: np.ndarray  # uint8 [G, P] stretched to fill the frame, then blurred: blind to pen and proportions
    aspect_G: np.ndarray  # float64 [G] width / height


@dataclasses.dataclass(frozen=True)
class GlyphClasses:
    """All honest classes, as data sets take them: ASCII first, then all scripts mixed, near twins last."""

    codepoints: tuple[int, ...]  # [C] the lowest character of each class: the one that is drawn
    members: tuple[tuple[int, ...], ...]  # [C] all characters of each class
    unit_CP: np.ndarray  # uint8 [C, UNIT_SIDE ** 2] mean unit picture over the regular fonts

    def __len__(self) -> int:
        return len(self.codepoints)

    def names(self) -> list[str]:
        """For example 'LATIN CAPITAL LETTER A (U+0041)'."""
        return [f"{unicodedata.name(chr(code))} (U+{code:04X})" for code in self.codepoints]


def font_path(font: str) -> Path:
    """Where matplotlib keeps a font. Found without importing matplotlib, which takes longer than all the rest."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise StageError("glyphs: found no matplotlib; expected its fonts; install cleanscale with its dependencies")
    path = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf" / f"{font}.ttf"
    if not path.is_file():
        raise StageError(f"glyphs: found no {path}; expected the fonts that matplotlib ships; reinstall matplotlib")
    return path


@functools.lru_cache(maxsize=256)
def loaded_font(font: str, pixels_per_em: int) -> ImageFont.FreeTypeFont:
    """The font at a size; basic layout, since raqm would shape and may be missing."""
    return ImageFont.truetype(str(font_path(font)), pixels_per_em, layout_engine=ImageFont.Layout.BASIC)


def render(font: str, code: int, pixels_per_em: int) -> Image.Image | None:
    """The character as a coverage picture ('L') cropped to its ink; None when the font draws nothing for it."""
    mask = loaded_font(font, pixels_per_em).getmask(chr(code), "L")
    box = mask.getbbox()
    if box is None:
        return None
    covered: Any = mask  # iterable, which its type does not say
    return Image.frombytes("L", mask.size, bytes(covered)).crop(box)


def unit_picture(font: str, code: int) -> np.ndarray | None:
    """uint8 [UNIT_SIDE, UNIT_SIDE]: the character scaled to the frame and centred: place and size do not count."""
    picture = render(font, code, 2 * UNIT_SIDE)
    if picture is None:
        return None
    scale = UNIT_SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    top, left = (UNIT_SIDE - height) // 2, (UNIT_SIDE - width) // 2
    unit = np.zeros((UNIT_SIDE, UNIT_SIDE), np.uint8)
    fitted = picture.resize((width, height), Image.Resampling.BILINEAR)
    unit[top : top + height, left : left + width] = np.asarray(fitted)
    return unit


@functools.cache
def characters_of(font: str) -> frozenset[int]:
    """Characters that the font has a glyph for and that have a picture of their own."""
    with TTFont(font_path(font), lazy=True) as table:
        mapped = table.getBestCmap() or {}
    return frozenset(code for code, glyph in mapped.items() if glyph != ".notdef" and has_picture(chr(code)))


def has_picture(character: str) -> bool:
    """False for spaces, controls, marks and styled letters: mathematical bold A is A in a bold font."""
    styled = unicodedata.decomposition(character).startswith("<font>")
    return not styled and not unicodedata.category(character).startswith(NO_PICTURE)


@functools.cache
def placeholder_bytes(font: str) -> bytes | None:
    """The unit picture of a noncharacter: what the font draws when it has no glyph."""
    picture = unit_picture(font, 0x10FFFF)
    return None if picture is None else picture.tobytes()


def honest_picture(font: str, code: int) -> np.ndarray | None:
    """The unit picture, or None where the font draws nothing or its placeholder."""
    picture = unit_picture(font, code)
    return None if picture is None or picture.tobytes() == placeholder_bytes(font) else picture


@functools.cache
def fonts_that_draw(code: int) -> tuple[str, ...]:
    """All fonts that honestly draw this character, regular or not: the variety inside a class."""
    return tuple(font for font in FONTS if code in characters_of(font) and honest_picture(font, code) is not None)


def font_pictures(font: str) -> FontPictures:
    """Pictures of all characters that the font honestly draws."""
    units = {code: honest_picture(font, code) for code in sorted(characters_of(font))}
    drawn = {code: unit.ravel() for code, unit in units.items() if unit is not None}
    inks = [Image.fromarray(unit.reshape(UNIT_SIDE, UNIT_SIDE)) for unit in drawn.values()]
    boxes = [ink.getbbox() or (0, 0, UNIT_SIDE, UNIT_SIDE) for ink in inks]
    return FontPictures(
        code_G=np.array(list(drawn), np.int64),
        unit_GP=np.stack(list(drawn.values())),
        stretched_GP=np.stack([stretched_picture(ink, box) for ink, box in zip(inks, boxes, strict=True)]),
        aspect_G=np.array([(right - left) / (bottom - top) for left, top, right, bottom in boxes]),
    )


def stretched_picture(unit: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """uint8 [P]: the ink in `box` stretched to all but a margin of the frame, and blurred by a pixel."""
    inner = UNIT_SIDE - 4
    frame = Image.new("L", (UNIT_SIDE, UNIT_SIDE))
    frame.paste(unit.resize((inner, inner), Image.Resampling.BILINEAR, box=box), (2, 2))
    return np.asarray(frame.filter(ImageFilter.BoxBlur(1))).ravel()


def similar_pairs(picture_GP: np.ndarray, threshold: float, block: int = 1024) -> np.ndarray:
    """int64 [pairs, 2] with i < j: pictures whose cosine is at least `threshold`. In blocks: G x G is never held."""
    unit_GP = picture_GP.astype(np.float32)
    unit_GP /= np.linalg.norm(unit_GP, axis=1, keepdims=True)
    found = []
    for start in range(0, len(unit_GP), block):
        first, second = np.nonzero(unit_GP[start : start + block] @ unit_GP[start:].T >= threshold)
        pair = np.stack([first, second], axis=1)[first < second] + start
        found.append(pair)
    return np.concatenate(found)


def merged(code_G: np.ndarray, pair_E2: np.ndarray) -> dict[int, int]:
    """codepoint -> lowest codepoint of its class, by union-find over pairs of codepoints that look the same."""
    parent = {int(code): int(code) for code in code_G}

    def root(code: int) -> int:
        while parent[code] != code:
            parent[code] = parent[parent[code]]
            code = parent[code]
        return code

    for one, other in pair_E2.tolist():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {code: root(code) for code in parent}


def preferred_order(code_C: np.ndarray) -> np.ndarray:
    """int64 [C]: printable ASCII first, since everybody can read it, then all scripts mixed by a fixed hash."""
    hash_C = hash_rows(0, Purpose.GLYPHS, code_C)
    return np.lexsort((hash_C, code_C >= 0x80))


def twins_last(code_C: np.ndarray, pairs: set[tuple[int, int]]) -> np.ndarray:
    """The classes in their order, but each one that is a near twin of an earlier one goes behind all that are not."""
    twins: dict[int, list[int]] = {}
    for one, other in pairs:
        if one == other:  # both belong to one class
            continue
        twins.setdefault(one, []).append(other)
        twins.setdefault(other, []).append(one)
    taken: set[int] = set()
    late = []
    for code in code_C.tolist():
        if taken.isdisjoint(twins.get(code, ())):
            taken.add(code)
        else:
            late.append(code)
    return np.array([code for code in code_C.tolist() if code in taken] + late, np.int64)


@functools.cache
def glyph_classes() -> GlyphClasses:
    """All classes that the fonts honestly hold (about 5,000). About two seconds, once per process."""
    pictures = [font_pictures(font) for font in REGULAR_FONTS]
    near = [similar_pairs(font.unit_GP, TWINS) for font in pictures]
    same = [font.code_G[pairs_at_least(font.unit_GP, pairs, SAME)] for font, pairs in zip(pictures, near, strict=True)]
    lowest = merged(np.unique(np.concatenate([font.code_G for font in pictures])), np.concatenate(same))
    members: dict[int, list[int]] = {}
    for code, low in lowest.items():
        members.setdefault(low, []).append(code)
    twins = [
        font.code_G[np.concatenate([pairs, stretched_pairs(font)])] for font, pairs in zip(pictures, near, strict=True)
    ]
    class_twins = {(lowest[one], lowest[other]) for one, other in np.concatenate(twins).tolist()}
    codes = np.array(list(members), np.int64)
    ordered = twins_last(codes[preferred_order(codes)], class_twins)
    return GlyphClasses(
        codepoints=tuple(ordered.tolist()),
        members=tuple(tuple(members[code]) for code in ordered.tolist()),
        unit_CP=mean_pictures(ordered, pictures),
    )


def stretched_pairs(font: FontPictures) -> np.ndarray:
    """int64 [pairs, 2]: characters of similar aspect whose stretched pictures are near twins."""
    pair_E2 = similar_pairs(font.stretched_GP, STRETCHED_TWINS)
    log_aspect_E2 = np.log(font.aspect_G)[pair_E2]
    return pair_E2[np.abs(log_aspect_E2[:, 0] - log_aspect_E2[:, 1]) < np.log(ASPECT_SPREAD)]


def pairs_at_least(picture_GP: np.ndarray, pair_E2: np.ndarray, threshold: float) -> np.ndarray:
    """The pairs whose cosine is at least `threshold`, computed pair by pair."""
    one_EP, other_EP = (picture_GP[pair_E2[:, side]].astype(np.float32) for side in (0, 1))
    norm_E = np.linalg.norm(one_EP, axis=1) * np.linalg.norm(other_EP, axis=1)
    return pair_E2[(one_EP * other_EP).sum(axis=1) >= threshold * norm_E]


def mean_pictures(code_C: np.ndarray, pictures: list[FontPictures]) -> np.ndarray:
    """uint8 [C, P]: the mean unit picture of each class over the regular fonts that have it."""
    total_CP = np.zeros((len(code_C), UNIT_SIDE**2), np.float32)
    count_C = np.zeros(len(code_C), np.float32)
    for font in pictures:
        here_C = np.isin(code_C, font.code_G)
        total_CP[here_C] += font.unit_GP[np.searchsorted(font.code_G, code_C[here_C])]
        count_C += here_C
    return np.round(total_CP / count_C[:, None]).astype(np.uint8)
