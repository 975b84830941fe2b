"""glyphs: the embedded data set. Pictures of characters, mislabeled in both ways of Xiao et al., with known truth.

Every picture and label is a function of (settings, seed, split, position): any rows can be made anywhere, in pieces.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cleanscale.datasets import glyph_noise
from cleanscale.datasets.glyph_drawing import draw, png
from cleanscale.datasets.glyph_fonts import glyph_classes
from cleanscale.errors import ConfigError
from cleanscale.maths.keyed_random import Purpose, generator
from cleanscale.schema import UNSEEN

EMBEDDED = "glyphs"  # as --data.train
ROWS_PER_FILE = 2048
SURELY_HELD = 4000  # classes; matplotlib's fonts hold over 5,000, and counting them takes two seconds
SPLITS = ("train", "test", "clean")  # the position is part of the keys: append, never reorder

GLYPHS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("label", pa.int32()),
        ("true_label", pa.int32()),
        ("noise_type", pa.int8()),
        ("verified", pa.int8()),
    ]
)


class GlyphsSettings(BaseModel, frozen=True):  # here too: so type checkers see that it can be hashed
    """What to draw, and how wrong its labels are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: int = Field(300, ge=2, description="Number of classes (characters); the fonts hold about 5,000.")
    train_per_class: int = Field(60, ge=1, description="Training images that come with each class's label.")
    test_per_class: int = Field(10, ge=0, description="Test images of each class, all with the right label.")
    clean_per_class: int = Field(
        0, ge=0, description="Images of each class in an extra training set whose labels are all right."
    )
    size: int = Field(32, ge=16, le=512, description="Side of the square images in pixels.")
    wrong: float = Field(0.30, ge=0.0, le=0.95, description="Share of the training images whose label is wrong.")
    confusing_share: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of the wrong labels that name a look-alike; the others name any class."
    )
    verified_classes: int = Field(60, ge=0, description="Classes in which somebody has checked labels.")
    verified_per_class: int = Field(20, ge=0, description="Checked training images in each of these classes.")

    per_image: int = Field(
        1, ge=1, le=9, description="Most characters on a picture; with more than one, labels are lists of classes."
    )
    missing: float = Field(
        0.15, ge=0.0, le=0.95, description="With several characters: share of the right labels that is missing."
    )
    verified_images: int = Field(
        0, ge=0, description="With several characters: training pictures of which somebody has checked all labels."
    )

    @model_validator(mode="after")
    def no_more_verified_than_there_are(self) -> GlyphsSettings:
        if self.per_image > 1:  # then whole pictures are verified
            return self
        if self.verified_classes > self.classes:
            raise ConfigError(
                f"found glyphs.verified_classes = {self.verified_classes} of {self.classes} classes; expected no more"
                " than there are; lower it or raise glyphs.classes"
            )
        if self.verified_per_class > self.train_per_class:
            raise ConfigError(
                f"found glyphs.verified_per_class = {self.verified_per_class} of {self.train_per_class} training images"
                " per class; expected no more than there are; lower it or raise glyphs.train_per_class"
            )
        return self


class GlyphFile(NamedTuple):
    """One Parquet file of the data set: rows start .. stop-1 of a split."""

    split: str
    name: str
    start: int
    stop: int


def check(settings: GlyphsSettings) -> None:
    """ConfigError when the fonts hold fewer classes than the settings ask for."""
    if settings.classes <= SURELY_HELD:
        return
    held = len(glyph_classes())
    if settings.classes > held:
        raise ConfigError(
            f"found glyphs.classes = {settings.classes}; expected at most {held}, which is how many characters of"
            " the shipped fonts differ in outline; ask for fewer, or test scale on generated features"
        )


def per_class(settings: GlyphsSettings, split: str) -> int:
    """Images with each label in a split."""
    if split not in SPLITS:
        raise ConfigError(f"found the glyphs split {split!r}; expected one of {', '.join(SPLITS)}; name one of these")
    return {"train": settings.train_per_class, "test": settings.test_per_class, "clean": settings.clean_per_class}[
        split
    ]


def num_rows(settings: GlyphsSettings, split: str) -> int:
    """Images in a split."""
    return settings.classes * per_class(settings, split)


def class_names(settings: GlyphsSettings) -> list[str]:
    """Name of each class, by its integer label. Raises ConfigError as `glyph_files`."""
    check(settings)
    return glyph_classes().names()[: settings.classes]


def glyph_files(settings: GlyphsSettings) -> list[GlyphFile]:
    """The files of the data set, fixed by the settings alone; each can be made by anyone with `glyph_rows`.

    Raises ConfigError when the fonts hold fewer classes than the settings ask for.
    """
    check(settings)
    return files_of({split: num_rows(settings, split) for split in SPLITS})


def files_of(rows_of_split: dict[str, int]) -> list[GlyphFile]:
    return [
        GlyphFile(split, f"{split}-{start // ROWS_PER_FILE:05d}.parquet", start, min(start + ROWS_PER_FILE, rows))
        for split, rows in rows_of_split.items()
        for start in range(0, rows, ROWS_PER_FILE)
    ]


def glyph_rows(settings: GlyphsSettings, seed: int, split: str, start: int = 0, stop: int | None = None) -> pa.Table:
    """Rows start .. stop-1 of a split as a table of schema GLYPHS (stop None: to the end).

    A row is the same whatever range it is made in. Raises ConfigError for settings that cannot be met.
    """
    labels = glyph_labels(settings, seed, split)
    rows = range(*slice(start, stop).indices(len(labels.label_N)))
    here = slice(rows.start, rows.stop)
    codepoints = glyph_classes().codepoints
    images = [
        png(draw(codepoints[true_label], settings.size, picture_generator(seed, split, index)))
        for true_label, index in zip(labels.true_label_N[here].tolist(), labels.index_N[here].tolist(), strict=True)
    ]
    columns = [
        [row_id(split, row) for row in rows],
        images,
        labels.label_N[here],
        labels.true_label_N[here],
        labels.noise_type_N[here],
        labels.verified_N[here],
    ]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, GLYPHS, strict=True)], schema=GLYPHS
    )


def glyph_verification(settings: GlyphsSettings, seed: int) -> pa.Table:
    """The verification table of the training split: id, label, verified (1 or 0), verified_label (the true one)."""
    labels = glyph_labels(settings, seed, "train")
    rows = np.flatnonzero(labels.verified_N != UNSEEN)
    return pa.table(
        {
            "id": pa.array([row_id("train", row) for row in rows.tolist()], pa.string()),
            "label": labels.label_N[rows],
            "verified": labels.verified_N[rows],
            "verified_label": labels.true_label_N[rows],
        }
    )


def row_id(split: str, row: int) -> str:
    """The id of an image."""
    return f"{split}-{row:07d}"


def picture_generator(seed: int, split: str, index: int) -> np.random.Generator:
    """Everything random about one picture."""
    return generator(seed, Purpose.GLYPHS, SPLITS.index(split), glyph_noise.KEY_PICTURE, index)


@functools.lru_cache(maxsize=8)
def glyph_labels(settings: GlyphsSettings, seed: int, split: str) -> glyph_noise.Labels:
    """All labels of a split in their order: noisy and verified for train, right for test and clean."""
    check(settings)
    alike = glyph_noise.look_alikes(glyph_classes().unit_CP[: settings.classes])
    position = SPLITS.index(split)
    wrong = settings.wrong if split == "train" else 0.0
    labels = glyph_noise.noisy_labels(
        seed, position, alike, per_class(settings, split), wrong, settings.confusing_share
    )
    if split != "train":
        return labels
    return glyph_noise.verify(
        labels, seed, position, settings.classes, settings.verified_classes, settings.verified_per_class
    )
