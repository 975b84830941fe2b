"""Encoded images to uint8 RGB arrays, and back for the training cache. A bad image raises UnreadableImage."""

from __future__ import annotations

import functools
import io
import math
import warnings

import numpy as np
from PIL import Image, ImageOps

# Decoders that do nothing but decode: others (EPS, PDF, ...) start programs or are not images of photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb: 0.5 GB as RGB

# JPEG is decoded at a power of two below the target's size times this, then resampled: as Pillow's thumbnail does.
_DRAFT_MARGIN = 2
_WHITE = (255, 255, 255)


class UnreadableImage(Exception):  # noqa: N818 - the name of the row's reason, not of a program error
    """These bytes are not an image that can be decoded; the message is short and says why."""


def decode(image_bytes: bytes | memoryview, at_least: int | None = None) -> np.ndarray:
    """uint8 [H, W, 3] of any supported image, upright by its EXIF orientation.

    Transparency is composited over white: Pillow's plain `convert("RGB")`, which torchvision and timm rely on, shows
    whatever colour hides below it, mostly black. 16-bit grey is scaled (65535 -> 255), not clipped. Of an animation
    the first frame counts.

    `at_least`: a JPEG may come back at 1/2, 1/4 or 1/8 of its size, which is much quicker, as long as its shorter side
    keeps this many pixels.
    """
    with _opened(image_bytes) as image:
        if at_least is not None:
            _draft(image, at_least)
        return np.asarray(_finished(image))


def decode_resized(
    image_bytes: bytes | memoryview,
    size: int,
    crop: int | None = None,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """uint8 RGB with the shorter side resized to `size` and the centre `crop` x `crop` cut out of it.

    The geometry, rounding and antialiasing of torchvision's Resize(size) then CenterCrop(crop); only the part that
    remains is resampled. crop None keeps the whole image. A crop larger than the image is padded with black, as there.
    """
    with _opened(image_bytes) as image:
        _draft(image, _DRAFT_MARGIN * size)
        return np.asarray(resize_and_crop(_finished(image), size, crop, resample))


def resize_and_crop(
    image: Image.Image, size: int, crop: int | None, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """An RGB image resized to shorter side `size`, its centre cut out; see `decode_resized`."""
    width, height = _resized_shape(image.width, image.height, size)
    if crop is None:
        return image if image.size == (width, height) else image.resize((width, height), resample)
    left, top = _centred(width, crop), _centred(height, crop)
    inside = (max(left, 0), max(top, 0), min(left + crop, width), min(top + crop, height))
    scale_x, scale_y = image.width / width, image.height / height
    box = (inside[0] * scale_x, inside[1] * scale_y, inside[2] * scale_x, inside[3] * scale_y)
    part = image.resize((inside[2] - inside[0], inside[3] - inside[1]), resample, box=box)
    if part.size == (crop, crop):
        return part
    padded = Image.new("RGB", (crop, crop))
    padded.paste(part, (max(-left, 0), max(-top, 0)))
    return padded


def encode_cached(image_HW3: np.ndarray, lossless: bool = False) -> bytes:
    """JPEG (quality 95, full colour resolution) or PNG bytes of a uint8 RGB image, for `--data.cache_size` copies."""
    sink = io.BytesIO()
    image = Image.fromarray(image_HW3)
    if lossless:
        image.save(sink, "PNG", compress_level=3)
    else:
        image.save(sink, "JPEG", quality=95, subsampling=0)
    return sink.getvalue()


class _opened:  # noqa: N801 - used as a function
    """An open image; whatever a decoder raises inside becomes UnreadableImage."""

    def __init__(self, image_bytes: bytes | memoryview) -> None:
        self.image_bytes = image_bytes

    def __enter__(self) -> Image.Image:
        Image.init()  # Pillow knows the formats named in `formats` only once all its plugins are loaded
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(self.image_bytes), formats=_formats())
        except Exception as error:
            raise _unreadable(error) from error
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(f"{image.width} x {image.height} pixels: too large")
        return image

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Decoders of damaged files raise about anything (struct.error, IndexError, zlib.error, SyntaxError ...), and
        # one bad image in 100 million must not end a run.
        if isinstance(error, Exception) and not isinstance(error, (MemoryError, UnreadableImage)):
            raise _unreadable(error) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # some builds of Pillow lack some


def _unreadable(error: Exception) -> UnreadableImage:
    text = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    if "cannot identify" in text:
        text = "not a known image format"
    return UnreadableImage(text)


def _draft(image: Image.Image, at_least: int) -> None:
    if image.format in ("JPEG", "MPO"):
        scale = at_least / min(image.size)
        image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))  # type: ignore[arg-type]


def _finished(image: Image.Image) -> Image.Image:
    """Decoded, upright, RGB."""
    image.load()
    upright = ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image
    return _as_rgb(upright)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_wide_grey(image)
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no known range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, _WHITE)
        canvas.paste(image, mask=image.getchannel("A"))
        return canvas
    return image.convert("RGB")


def _from_wide_grey(image: Image.Image) -> Image.Image:
    """16-bit grey: 0 .. 65535 to 0 .. 255, rounded. Pillow's convert clips at 255, which leaves white."""
    grey_HW = np.asarray(image).astype(np.int64)
    grey_HW = np.clip(grey_HW, 0, 65535)
    small_HW = ((grey_HW * 255 + 32767) // 65535).astype(np.uint8)
    return Image.fromarray(small_HW).convert("RGB")


def _centred(side: int, crop: int) -> int:
    """Where the crop begins; negative: so much padding comes before the image. Rounded as torchvision does."""
    return round((side - crop) / 2.0) if side >= crop else -((crop - side) // 2)


def _resized_shape(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) after torchvision's Resize(size): the longer side is truncated, not rounded."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size
