"""One picture of a character: font, place, size, slant, pen, colours and noise drawn from a generator of its own."""

from __future__ import annotations

import functools
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cleanscale.datasets.glyph_fonts import fonts_that_draw, render

# S side of the picture in pixels

OVERSAMPLED = 2  # drawn at twice the side and averaged, since an affine transform does not filter
MASK_SIDE = 1.5  # side of the cached upright character, in sides of the picture
MIN_CONTRAST = 70.0  # between ink and paper, in grey levels of 255
GREY = np.array([0.299, 0.587, 0.114], np.float32)
MIN_PIXELS_PER_EM, MAX_PIXELS_PER_EM = 8, 4096


@functools.lru_cache(maxsize=1 << 15)
def upright(font: str, code: int, side: int) -> Image.Image:
    """The character whose longer side is about MASK_SIDE pictures, with a margin of one pixel."""
    probe = render(font, code, 2 * side)
    if probe is None:
        raise ValueError(f"{font} draws nothing for U+{code:04X}")  # glyph_fonts lists only what is drawn
    wanted = 2 * side * MASK_SIDE * side / max(probe.size)
    picture = render(font, code, round(min(max(wanted, MIN_PIXELS_PER_EM), MAX_PIXELS_PER_EM))) or probe
    framed = Image.new("L", (picture.width + 2, picture.height + 2))
    framed.paste(picture, (1, 1))
    return framed


def draw(code: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [S, S, 3]: a picture of the character; everything random comes from `rng`."""
    fonts = fonts_that_draw(code)
    cover_SS = ink_cover(upright(fonts[int(rng.integers(len(fonts)))], code, side), side, rng)
    return coloured(cover_SS, side, rng)


def draw_scene(codes: Sequence[int], side: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [S, S, 3]: several characters on one picture, each in a cell of its own of a square grid."""
    cells = math.ceil(math.sqrt(len(codes)))
    cell = side // cells
    cover_SS = np.zeros((side, side), np.float32)
    for code, place in zip(codes, rng.permutation(cells * cells)[: len(codes)].tolist(), strict=True):
        fonts = fonts_that_draw(code)
        down, across = (place // cells) * cell, (place % cells) * cell
        character = upright(fonts[int(rng.integers(len(fonts)))], code, cell)
        cover_SS[down : down + cell, across : across + cell] = ink_cover(character, cell, rng)
    return coloured(cover_SS, side, rng)


def coloured(cover_SS: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [S, S, 3]: ink on paper, unevenly lit, with noise."""
    paper, ink = paper_and_ink(rng)
    picture_SS3 = cover_SS[:, :, None] * (ink - paper) + paper
    picture_SS3 += shade(side, rng)[:, :, None]
    picture_SS3 += rng.standard_normal((side, side, 3), dtype=np.float32) * np.float32(rng.uniform(2.0, 14.0))
    return picture_SS3.clip(0.0, 255.0).astype(np.uint8)


def ink_cover(character: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [S, S] in 0 .. 1: how much ink lies on each pixel."""
    big = OVERSAMPLED * side
    cover = character.transform(
        (big, big), Image.Transform.AFFINE, placement(character.size, big, rng), Image.Resampling.BILINEAR
    )
    if rng.random() < 0.35:
        scratch(cover, rng)
    cover = cover.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 1.6) * big / 64))
    cover_SS = np.asarray(cover.reduce(OVERSAMPLED), np.float32) * np.float32(1.0 / 255.0)
    pen, sharpness = rng.uniform((0.25, 1.2), (0.6, 3.0)).tolist()  # a low pen threshold thickens strokes
    thick_SS = ((cover_SS - pen) * sharpness + 0.5).clip(0.0, 1.0)
    return thick_SS * (cover_SS * 8.0).clip(0.0, 1.0)  # where there was no ink at all there is none now


def placement(size: tuple[int, int], big: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Six coefficients (output to input pixel) of a random size, slant, turn, stretch and place in the frame.

    Forward map: turn times [[stretch, slant], [0, 1 / stretch]] times scale; in scalars, since 2 x 2 arrays are slow.
    """
    turn, slant, stretch = (rng.standard_normal(3) * (0.14, 0.12, 0.08)).tolist()
    share, *offset = rng.uniform((0.5, -1.0, -1.0), (0.92, 1.0, 1.0)).tolist()
    cos, sin, stretch = math.cos(turn), math.sin(turn), math.exp(stretch)
    xx, xy = cos * stretch, cos * slant - sin / stretch
    yx, yy = sin * stretch, sin * slant + cos / stretch
    width, height = size
    reach = (abs(xx) * width + abs(xy) * height, abs(yx) * width + abs(yy) * height)  # after turning
    scale = big * share / max(reach)
    x, y = (big / 2.0 + off * (big - side * scale) / 2.0 for off, side in zip(offset, reach, strict=True))
    # The determinant of the map is scale ** 2.
    back_xx, back_xy, back_yx, back_yy = yy / scale, -xy / scale, -yx / scale, xx / scale
    shift_x = width / 2.0 - back_xx * x - back_xy * y
    shift_y = height / 2.0 - back_yx * x - back_yy * y
    return back_xx, back_xy, shift_x, back_yx, back_yy, shift_y


def scratch(cover: Image.Image, rng: np.random.Generator) -> None:
    """A stray stroke in the ink's colour, as in scanned pages."""
    ends = rng.uniform(0.0, cover.width, 4)
    ImageDraw.Draw(cover).line(tuple(ends.tolist()), fill=int(rng.integers(120, 256)), width=max(1, cover.width // 32))


def paper_and_ink(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 [3] colours whose grey levels are at least MIN_CONTRAST apart, either one the darker."""
    while True:
        paper, ink = rng.uniform(0.0, 255.0, (2, 3)).astype(np.float32)
        if abs(float(GREY @ (ink - paper))) >= MIN_CONTRAST:
            return paper, ink


def shade(side: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [S, S]: light that falls off over the page, in grey levels."""
    across, down = rng.uniform(-30.0, 30.0, 2).astype(np.float32)
    ramp_S = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    return ramp_S[None, :] * across + ramp_S[:, None] * down


def png(picture_SS3: np.ndarray) -> bytes:
    """The picture as PNG (8-bit RGB, filter "up"); for pictures this small, twice as fast as Pillow's writer."""
    height, width = picture_SS3.shape[:2]
    filtered = np.full((height, 1 + 3 * width), 2, np.uint8)  # first byte of each line: filter type 2, "up"
    lines = picture_SS3.reshape(height, 3 * width)
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])  # wraps modulo 256, as the format asks
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
