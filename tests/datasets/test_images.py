"""Every kind of encoded image that people have, made here with Pillow."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cleanscale.datasets import images
from cleanscale.datasets.images import UnreadableImage, decode, decode_resized, encode_cached


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Smooth, so that JPEG keeps it; left is red, the lower part is blue."""
    x_W, y_H = np.linspace(255, 0, width), np.linspace(0, 255, height)
    array = np.stack(
        [np.tile(x_W, (height, 1)), np.full((height, width), 90.0), np.tile(y_H[:, None], (1, width))], axis=-1
    )
    return Image.fromarray(array.astype(np.uint8))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PPM", {})],
)
def test_lossless_formats_come_back_exactly(kind: str, options: dict[str, Any]) -> None:
    assert np.array_equal(decode(encode(picture(), kind, **options)), np.asarray(picture()))


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_come_back_nearly(kind: str, options: dict[str, Any]) -> None:
    decoded = decode(encode(picture(), kind, **options)).astype(int)
    assert np.abs(decoded - np.asarray(picture())).mean() < 4


def test_grey_is_three_equal_channels() -> None:
    grey = picture().convert("L")
    for kind in ("PNG", "JPEG"):
        decoded = decode(encode(grey, kind))
        assert decoded.shape == (30, 40, 3)
        assert np.array_equal(decoded[..., 0], decoded[..., 2])


def test_one_bit_images_are_black_and_white() -> None:
    assert set(np.unique(decode(encode(picture().convert("1"), "PNG")))) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode: str) -> None:
    image = Image.new(mode, (4, 2), (0,) * (len(mode) - 1) + (0,))
    image.putpixel((0, 0), (0,) * (len(mode) - 1) + (255,))
    image.putpixel((1, 0), (0,) * (len(mode) - 1) + (128,))
    decoded = decode(encode(image, "PNG"))
    assert decoded[0, 0].tolist() == [0, 0, 0]
    assert decoded[1, 3].tolist() == [255, 255, 255]
    assert abs(int(decoded[0, 1, 0]) - 127) <= 1


def test_palette_images_have_their_colours_and_their_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 0, 0, 250])
    image.putpixel((1, 0), 1)
    assert decode(encode(image, "PNG")).tolist() == [[[200, 10, 20], [0, 0, 250]]]
    for kind in ("PNG", "GIF"):
        assert decode(encode(image, kind, transparency=1)).tolist() == [[[200, 10, 20], [255, 255, 255]]]


def test_rgb_png_with_a_transparent_colour_shows_white_there() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert decode(encode(image, "PNG", transparency=(9, 9, 9))).tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    decoded = decode(encode(Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK"), kind))
    assert decoded.shape == (16, 16, 3)
    assert decoded[8, 8, 0] > 200
    assert decoded[8, 8, 1] < 60


def png_16_bit_rgb(value: int) -> bytes:
    """A 1 x 1 PNG with 16-bit RGB, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", value, value, value)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_16_bit_is_scaled_and_not_clipped() -> None:
    wide_HW = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert decode(encode(Image.fromarray(wide_HW), "PNG"))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert decode(png_16_bit_rgb(32768)).tolist() == [[[128, 128, 128]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """The slow twin is the table of the EXIF standard, spelled out on the array."""
    stored = np.asarray(picture(24, 16)).astype(int)
    expected = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored[::-1].transpose(1, 0, 2),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(picture(24, 16), "JPEG", quality=95, subsampling=0, exif=exif))
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).mean() < 5
    resized = decode_resized(encode(picture(24, 16), "PNG", exif=exif), 8)
    assert resized.shape == ((8, 12, 3) if orientation < 5 else (12, 8, 3))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(content)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a known image format"),
        (b"not an image at all", "not a known image format"),
        (encode(picture(), "JPEG")[:400], "(?i)truncated"),
        (encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "PNG")[:900], ""),
        (encode(picture(), "PNG")[:20], ""),
        (encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floating-point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a known image format"),
    ],
)
def test_a_damaged_image_is_unreadable_and_says_why(content: bytes, why: str) -> None:
    for read in (decode, lambda one: decode_resized(one, 8, 8)):
        with pytest.raises(UnreadableImage, match=why):
            read(content)


def test_random_damage_is_unreadable_or_decoded_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        content = np.frombuffer(encode(picture(), kind), np.uint8)
        for _ in range(40):
            damaged = content.copy()
            damaged[rng.integers(0, len(damaged), 8)] = rng.integers(0, 256, 8)
            with contextlib.suppress(UnreadableImage):
                assert decode(damaged.tobytes()).ndim == 3


def test_a_decompression_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encode(Image.new("1", (14_000, 14_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(UnreadableImage, match=r"pixels"):
        decode(bomb)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="too large"):
        decode(encode(picture(), "PNG"))


@pytest.mark.parametrize(("width", "height"), [(40, 30), (31, 67), (8, 8), (5, 90), (64, 64)])
@pytest.mark.parametrize(("size", "crop"), [(16, 16), (20, 17), (16, None), (12, 15)])
def test_geometry_is_torchvisions_resize_and_centre_crop(width: int, height: int, size: int, crop: int | None) -> None:
    steps = [v2.Resize(size)] + ([v2.CenterCrop(crop)] if crop else [])
    noise = np.random.default_rng(width).integers(0, 255, (height, width, 3), np.uint8)
    expected = np.asarray(v2.Compose(steps)(Image.fromarray(noise)))
    ours = decode_resized(encode(Image.fromarray(noise), "PNG"), size, crop)
    assert ours.shape == expected.shape
    assert np.abs(ours.astype(int) - expected).max() <= 1


def test_a_large_jpeg_resized_from_a_draft_is_close_to_one_resized_in_full() -> None:
    content = encode(picture(1200, 900), "JPEG", quality=95)
    whole = torch.from_numpy(np.asarray(v2.Resize(64)(Image.fromarray(decode(content)))).astype(int))
    drafted = torch.from_numpy(decode_resized(content, 64).astype(int))
    assert drafted.shape == whole.shape
    assert (drafted - whole).abs().float().mean() < 1.5


def test_a_draft_keeps_at_least_the_asked_side() -> None:
    content = encode(picture(1200, 900), "JPEG")
    assert decode(content).shape == (900, 1200, 3)
    assert decode(content, at_least=224).shape == (225, 300, 3)
    assert decode(content, at_least=226).shape == (450, 600, 3)
    assert decode(encode(picture(400, 300), "PNG"), at_least=64).shape == (300, 400, 3)


def test_cached_copies_come_back() -> None:
    image = np.asarray(picture())
    assert np.array_equal(decode(encode_cached(image, lossless=True)), image)
    assert np.abs(decode(encode_cached(image)).astype(int) - image).mean() < 2
