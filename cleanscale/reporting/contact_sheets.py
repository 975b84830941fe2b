"""Contact sheets as PNG bytes: decoded pictures and their captions in, no files.

A picture is uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cleanscale.errors import DataError
from cleanscale.reporting import formats

# Okabe and Ito's vermilion and blue: told apart with any colour vision.
WRONG, RIGHT, INK, GREY, FRAME = "#B34700", "#0072B2", "#222222", "#707070", "#DDDDDD"
_GAP, _MARGIN, _LINE, _TITLE_LINE = 12, 20, 17, 24
_TEXT_SIZE, _TITLE_SIZE = 12, 17


@dataclass(frozen=True)
class Suspect:
    """An image that is most surely mislabeled.

    Attributes:
        picture: the decoded image.
        given: name of the label that it came with.
        suggested: name of the label that fits better, where there is one.
        probability_wrong: how sure the detector is, in [0, 1].
        known_wrong: the truth, where it is known.
    """

    picture: np.ndarray
    given: str
    suggested: str | None
    probability_wrong: float
    known_wrong: bool | None = None


@dataclass(frozen=True)
class AttendedClass:
    """The references of a class that its class embedding attends to most and least (CleanNet, Eq. 3 and Fig. 3).

    Attributes:
        name: of the class.
        most: (picture, attention) with the greatest attention first. The attentions of a class sum to 1.
        least: (picture, attention) with the smallest attention first.
        references: how many references the class has in all.
    """

    name: str
    most: Sequence[tuple[np.ndarray, float]]
    least: Sequence[tuple[np.ndarray, float]]
    references: int


def most_surely_wrong(
    suspects: Sequence[Suspect], *, columns: int = 8, size: int = 120, of: int | None = None
) -> bytes:
    """A grid of the images most surely wrong, in the order given: given label -> suggested label, and how sure.

    Args:
        suspects: the surest first.
        columns: pictures in a row, fewer where there are fewer pictures.
        size: pixels of a picture's side.
        of: how many labels are called wrong in all, for the title.
    """
    columns = max(min(columns, len(suspects)), 3)
    rows = -(-len(suspects) // columns)
    known = any(suspect.known_wrong is not None for suspect in suspects)
    tile_height = size + 3 * _LINE + 6 + (_LINE if known else 0)
    title = f"The {len(suspects):,} images most surely wrong" if suspects else "No label is called wrong"
    title += f", of {of:,} called wrong" if of and suspects else ""
    legend = "Given label → what fits better; and how probable it is that the given label is wrong."
    if known:
        truths = [suspect.known_wrong for suspect in suspects if suspect.known_wrong is not None]
        legend += f" In truth {sum(truths)} of {len(truths)} are wrong."
    width = 2 * _MARGIN + columns * size + (columns - 1) * _GAP
    sheet, draw, top = _sheet(width, rows * (tile_height + _GAP), title, legend)
    for i, suspect in enumerate(suspects):
        x, y = _MARGIN + i % columns * (size + _GAP), top + i // columns * (tile_height + _GAP)
        _paste(sheet, suspect.picture, x, y, size)
        lines = [
            (suspect.given, WRONG, ""),
            (
                suspect.suggested or "no suggestion",
                RIGHT if suspect.suggested else GREY,
                "→ " if suspect.suggested else "",
            ),
            (f"{_percent(suspect.probability_wrong)} wrong", INK, ""),
        ]
        if known:
            lines.append(_truth(suspect.known_wrong))
        for number, (text, colour, before) in enumerate(lines):
            _write(draw, x, y + size + 6 + number * _LINE, before, text, colour, size)
    return _png(sheet)


def attended_references(
    classes: Sequence[AttendedClass], *, columns: int = 5, size: int = 96, centroids: bool = True
) -> bytes:
    """For some classes, one per row: the references attended to most on the left, and least on the right.

    Args:
        classes: with their pictures.
        columns: pictures on each side.
        size: pixels of a picture's side.
        centroids: the references are k-means centroids, and each picture is the image nearest to one.
    """
    side = columns * (size + _GAP) - _GAP
    between = 3 * _GAP
    title = "Which references their class listens to"
    legend = "Attention in percent; the references of a class share 100 %."
    if centroids:
        legend += " A picture is the image nearest to a centroid."
    row_height = _LINE + 8 + size + 4 + _LINE + _GAP
    width = 2 * _MARGIN + 2 * side + between
    sheet, draw, top = _sheet(width, _LINE + len(classes) * row_height, title, legend)
    left, right = _MARGIN, _MARGIN + side + between
    _write(draw, left, top, "", "most attention", RIGHT, side)
    _write(draw, right, top, "", "least attention", WRONG, side)
    for number, shown in enumerate(classes):
        y = top + _LINE + 4 + number * row_height
        _write(draw, left, y, "", f"{shown.name}   ({shown.references} references)", INK, side)
        draw.line((left, y + _LINE + 2, width - _MARGIN, y + _LINE + 2), fill=FRAME)
        for begin, references in ((left, shown.most), (right, shown.least)):
            for i, (picture, attention) in enumerate(references[:columns]):
                x = begin + i * (size + _GAP)
                _paste(sheet, picture, x, y + _LINE + 8, size)
                _write(draw, x, y + _LINE + 8 + size + 4, "", _percent(attention), GREY, size)
    return _png(sheet)


# ---- parts -----------------------------------------------------------------------------------------------------------


def _sheet(width: int, height: int, title: str, legend: str) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A white sheet with a title, its pen, and where the content begins."""
    top = _MARGIN + _TITLE_LINE + _LINE + _GAP
    sheet = Image.new("RGB", (max(width, 640), top + max(height, _LINE) + _MARGIN - _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    room = sheet.width - 2 * _MARGIN
    draw.text((_MARGIN, _MARGIN - 4), _fit(title, room, _TITLE_SIZE), font=_font(_TITLE_SIZE), fill=INK)
    draw.text((_MARGIN, _MARGIN + _TITLE_LINE), _fit(legend, room, _TEXT_SIZE), font=_font(_TEXT_SIZE), fill=GREY)
    return sheet, draw, top


def _paste(sheet: Image.Image, picture: np.ndarray, x: int, y: int, size: int) -> None:
    """Put a picture, in its proportions, into a framed square; small ones keep their pixels' edges."""
    image = _image(picture)
    scale = size / max(image.size)
    shape = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    image = image.resize(shape, Image.Resampling.NEAREST if scale >= 1.5 else Image.Resampling.LANCZOS)
    sheet.paste(image, (x + (size - image.width) // 2, y + (size - image.height) // 2))
    ImageDraw.Draw(sheet).rectangle((x - 1, y - 1, x + size, y + size), outline=FRAME)


def _image(picture: np.ndarray) -> Image.Image:
    """RGB; transparent parts become white."""
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or 0 in picture.shape:
        raise DataError(
            f"a picture is {picture.dtype} of shape {picture.shape}; expected uint8 [height, width(, channels)]; "
            "decode it and scale it to 0 .. 255 first"
        )
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[:, :, 0]
    image = Image.fromarray(picture)
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, before: str, text: str, colour: str, room: int) -> None:
    """One line, `before` in grey and the text in its colour, cut to the room there is."""
    font = _font(_TEXT_SIZE)
    used = font.getlength(before)
    draw.text((x, y), before, font=font, fill=GREY)
    draw.text((x + used, y), _fit(text, room - used, _TEXT_SIZE), font=font, fill=colour)


def _fit(text: str, room: float, size: int) -> str:
    """The text on one line, cut with an ellipsis where it is wider than the room."""
    text = " ".join(text.split())
    font = _font(size)
    if font.getlength(text) <= room:
        return text
    short = (formats.shorten(text, width) for width in range(len(text) - 1, 1, -1))
    return next((cut for cut in short if font.getlength(cut) <= room), "…")


def _truth(known_wrong: bool | None) -> tuple[str, str, str]:
    if known_wrong is None:
        return "truth not known", GREY, ""
    return ("wrong indeed", INK, "truth: ") if known_wrong else ("label is right", WRONG, "truth: ")


def _percent(part: float) -> str:
    """Never rounded to a certainty that nobody has."""
    percent = 100 * part
    if 99.95 <= percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %" if percent >= 0.05 or percent == 0 else "<0.1 %"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: the same letters on every machine, and many alphabets."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _png(sheet: Image.Image) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
