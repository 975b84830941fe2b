"""One picture of a character: font, place, size, slant, pen, colours and noise drawn from a generator of its own."""

from __future__ import annotations

import functools
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cleanscale.datasets.glyph_fonts import fonts_that_draw, render

# S side of the picture in pixels

OVERSAMPLED = 2  # drawn at twice the side and averaged, since an affine transform does not filter
MASK_SIDE = 1.5  # side of the cached upright character, in sides of the picture
MIN_CONTRAST = 70.0  # between ink and paper, in grey levels of 255
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
    paper, ink = paper_and_ink(rng)
    picture_SS3 = paper + cover_SS[:, :, None] * (ink - paper)
    picture_SS3 += shade(side, rng)[:, :, None]
    picture_SS3 += rng.standard_normal((side, side, 3), dtype=np.float32) * rng.uniform(2.0, 14.0)
    return np.clip(picture_SS3, 0.0, 255.0).astype(np.uint8)


def ink_cover(character: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [S, S] in 0 .. 1: how much ink lies on each pixel."""
    big = OVERSAMPLED * side
    cover = character.transform(
        (big, big), Image.Transform.AFFINE, placement(character.size, big, rng), Image.Resampling.BILINEAR
    )
    if rng.random() < 0.35:
        scratch(cover, rng)
    cover = cover.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 1.6) * big / 64))
    cover_SS = np.asarray(cover.reduce(OVERSAMPLED), np.float32) / 255.0
    pen, sharpness = rng.uniform(0.25, 0.6), rng.uniform(1.2, 3.0)  # a low pen threshold thickens strokes
    return np.clip((cover_SS - pen) * sharpness + 0.5, 0.0, 1.0) * np.minimum(cover_SS * 8.0, 1.0)


def placement(size: tuple[int, int], big: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Six coefficients (output to input pixel) of a random size, slant, turn, stretch and place in the frame."""
    turn, slant = rng.normal(0.0, 0.14), rng.normal(0.0, 0.12)
    stretch = float(np.exp(rng.normal(0.0, 0.08)))
    forward = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    forward = forward @ np.array([[stretch, slant], [0.0, 1.0 / stretch]])
    reach = np.abs(forward) @ np.array(size, float)  # width and height after turning
    scale = big * rng.uniform(0.5, 0.92) / reach.max()
    free = np.maximum(big - reach * scale, 0.0) / 2.0
    centre = big / 2.0 + rng.uniform(-1.0, 1.0, 2) * free
    backward = np.linalg.inv(forward * scale)
    shift = np.array(size) / 2.0 - backward @ centre
    return (backward[0, 0], backward[0, 1], shift[0], backward[1, 0], backward[1, 1], shift[1])


def scratch(cover: Image.Image, rng: np.random.Generator) -> None:
    """A stray stroke in the ink's colour, as in scanned pages."""
    ends = rng.uniform(0.0, cover.width, 4)
    ImageDraw.Draw(cover).line(tuple(ends.tolist()), fill=int(rng.integers(120, 256)), width=max(1, cover.width // 32))


def paper_and_ink(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 [3] colours whose grey levels are at least MIN_CONTRAST apart, either one the darker."""
    grey_weights = np.array([0.299, 0.587, 0.114])
    paper, ink = rng.uniform(0.0, 255.0, (2, 3))
    contrast = float(grey_weights @ (ink - paper))
    if abs(contrast) < MIN_CONTRAST:
        middle = (paper + ink) / 2.0
        direction = 1.0 if contrast >= 0 else -1.0
        apart = direction * (MIN_CONTRAST - abs(contrast)) / 2.0
        lift = np.clip(MIN_CONTRAST / 2.0 - grey_weights @ middle, 0.0, None)  # keep both inside 0 .. 255
        drop = np.clip(grey_weights @ middle - (255.0 - MIN_CONTRAST / 2.0), 0.0, None)
        paper, ink = paper - apart + lift - drop, ink + apart + lift - drop
    return np.clip(paper, 0, 255).astype(np.float32), np.clip(ink, 0, 255).astype(np.float32)


def shade(side: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [S, S]: light that falls off over the page, in grey levels."""
    across, down = rng.uniform(-30.0, 30.0, 2)
    ramp_S = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    return ramp_S[None, :] * np.float32(across) + ramp_S[:, None] * np.float32(down)


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
