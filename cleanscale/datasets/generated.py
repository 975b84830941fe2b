"""generated: features without images, clustered and mislabeled with known truth, for any number of classes and rows.

Classes come in groups of look-alikes; an image lies around the centre of its true class, and its label is that class,
a look-alike (confusing noise) or any class (pointless noise). Shares of wrong labels differ from class to class, class
sizes follow Zipf's law, and some classes have no image. Rows are in no order of classes.

Everything is a function of (settings, seed) and the class or the row: any rows can be made anywhere, in pieces.

# N rows of the split, M rows of a piece, C classes, D features, G groups, T rows of the table of directions
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported, where pyright does not see them)
from __future__ import annotations

import enum
import functools
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cleanscale.errors import ConfigError
from cleanscale.maths.keyed_permutation import KeyedPermutation
from cleanscale.maths.keyed_random import Purpose, generator, hash_about, uniform_about

GENERATED = "generated"  # as --data.train
ROWS_PER_FILE = 131_072
BLOCK_ROWS = 32_768  # drawn together, with one generator
IMAGES_PER_CLASS = 20
DIRECTIONS = 65_536
DIRECTIONS_OF_ONE = 3  # a centre is the sum of so many rows of the table: as good as independent, in no memory
SPLITS = ("train", "test")  # the position is part of the keys: append, never reorder
NAME_PREFIX = "class-"


class Key(enum.IntEnum):
    """What is drawn. Values are part of the data set: append, never renumber."""

    DIRECTIONS = 0
    SIZE_ORDER = 1
    EMPTY = 2
    ROW_ORDER = 3
    GROUP_ORDER = 4
    RATE = 5
    WRONG = 6
    KIND = 7
    LOOK_ALIKE = 8
    ANY_CLASS = 9
    SPREAD_OF_CLASS = 10
    SPREAD_OF_IMAGE = 11
    AROUND = 12
    TEST_CLASS = 13
    VERIFIED = 14
    AMBIGUITY = 15
    CENTRE_OF_GROUP = 16  # and the next DIRECTIONS_OF_ONE - 1
    CENTRE_OF_CLASS = 20


class GeneratedSettings(BaseModel, frozen=True):  # here too: so type checkers see that it can be hashed
    """What features to generate, and how wrong their labels are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: int = Field(1000, ge=2, description="Number of classes.")
    images: int | None = Field(
        None, ge=1, description="Training images over all classes; by default 20 times as many as there are classes."
    )
    width: int = Field(128, ge=8, le=4096, description="Numbers of a feature.")
    noise: float = Field(0.4, ge=0.0, le=0.95, description="Share of the training images whose label is wrong.")
    confusing_share: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of the wrong labels that name a look-alike; the others name any class."
    )
    look_alikes: int = Field(10, ge=1, description="Classes in a group of look-alikes.")
    distance: float = Field(
        0.55, gt=0.0, description="Distance of look-alike classes, where that of groups is 1: smaller is harder."
    )
    ambiguity: float = Field(
        0.5, ge=0.0, le=1.0, description="How much images resemble another class at most; wrong labels name that one."
    )
    zipf: float = Field(
        0.5, ge=0.0, le=2.0, description="Exponent of the class sizes: 0 all alike, 1 a very long tail of small ones."
    )
    largest_share: float = Field(
        0.0, ge=0.0, le=0.9, description="Share of all images that are in one class; 0 leaves it to zipf."
    )
    empty_share: float = Field(
        0.02, ge=0.0, le=0.9, description="Share of the classes without an image: gaps in the labels."
    )
    named: bool = Field(False, description="Labels are class names instead of integers.")
    test_images: int = Field(5000, ge=0, description="Test images, all with the right label.")
    verified_classes: int = Field(
        200, ge=0, description="Classes, if there are as many, in which somebody has checked labels."
    )
    verified_per_class: int = Field(20, ge=0, description="Checked labels in each of these, where it has as many.")

    @property
    def num_images(self) -> int:
        return self.images if self.images is not None else IMAGES_PER_CLASS * self.classes

    @property
    def num_empty(self) -> int:
        return min(round(self.empty_share * self.classes), self.classes - 2)

    @model_validator(mode="after")
    def images_for_every_class(self) -> GeneratedSettings:
        live = self.classes - self.num_empty
        if self.num_images < live:
            raise ConfigError(
                f"found generated.images = {self.num_images} for {live} classes that are not empty; expected one for"
                " each at least; raise it, or generated.empty_share"
            )
        return self


class GeneratedFile(NamedTuple):
    """One Parquet file of the data set: rows start .. stop-1 of a split."""

    split: str
    name: str
    start: int
    stop: int


def num_rows(settings: GeneratedSettings, split: str) -> int:
    """Images in a split."""
    return settings.num_images if split == "train" else settings.test_images


def generated_files(settings: GeneratedSettings) -> list[GeneratedFile]:
    """The files of the data set, fixed by the settings alone; each can be made by anyone with `generated_rows`."""
    return [
        GeneratedFile(split, f"{split}-{start // ROWS_PER_FILE:05d}.parquet", start, min(start + ROWS_PER_FILE, rows))
        for split in SPLITS
        for rows in [num_rows(settings, split)]
        for start in range(0, rows, ROWS_PER_FILE)
    ]


def generated_rows(settings: GeneratedSettings, seed: int, split: str, start: int, stop: int) -> pa.Table:
    """id, label, true_label and feature (float16) of rows start .. stop-1 of a split: the same in whatever range."""
    row_M = np.arange(start, stop)
    label_M, true_M = labels_of_rows(settings, seed, split, row_M)
    pieces = []
    for block in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
        first, last = max(start, block * BLOCK_ROWS), min(stop, (block + 1) * BLOCK_ROWS)
        around_MD = around_centre(settings, seed, split, block)[first - block * BLOCK_ROWS : last - block * BLOCK_ROWS]
        here = slice(first - start, last - start)
        pieces.append(features_of(settings, seed, split, row_M[here], label_M[here], true_M[here], around_MD))
    flat = pa.array(np.concatenate(pieces).reshape(-1) if pieces else np.empty(0, np.float16))
    return pa.table(
        {
            "id": row_ids(split, row_M),
            "label": named(settings, label_M),
            "true_label": named(settings, true_M),
            "feature": pa.FixedSizeListArray.from_arrays(flat, settings.width),
        }
    )


def labels_of_rows(
    settings: GeneratedSettings, seed: int, split: str, row_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(label, true class) int32 [M] each; they are the same in the test split."""
    if split == "test":
        live_L = np.flatnonzero(class_sizes(settings, seed))
        true_M = live_L[hash_about(seed, Purpose.GENERATED, Key.TEST_CLASS, row_M) % np.uint64(len(live_L))]
        return true_M.astype(np.int32), true_M.astype(np.int32)
    stop_C = np.cumsum(class_sizes(settings, seed))
    label_M = np.searchsorted(stop_C, row_order(settings, seed)(row_M), side="right")
    return label_M.astype(np.int32), true_classes(settings, seed, row_M, label_M).astype(np.int32)


def row_order(settings: GeneratedSettings, seed: int) -> KeyedPermutation:
    """From a row to its place in the order of classes."""
    return KeyedPermutation(settings.num_images, seed, Purpose.GENERATED, Key.ROW_ORDER)


@functools.lru_cache(maxsize=4)
def class_sizes(settings: GeneratedSettings, seed: int) -> np.ndarray:
    """int64 [C]: images with each label. The sizes add up to what is asked, and only empty classes have none."""
    class_C = np.arange(settings.classes)
    rank_C = KeyedPermutation(settings.classes, seed, Purpose.GENERATED, Key.SIZE_ORDER)(class_C)
    empty_C = KeyedPermutation(settings.classes, seed, Purpose.GENERATED, Key.EMPTY)(class_C) < settings.num_empty
    weight_C = np.where(empty_C, 0.0, (1.0 + rank_C) ** -settings.zipf)
    size_C = (~empty_C).astype(np.int64)
    largest = int(weight_C.argmax()) if settings.zipf else int(np.flatnonzero(~empty_C)[0])
    if settings.largest_share:
        left = settings.num_images - int(size_C.sum())
        size_C[largest] += min(left, round(settings.largest_share * settings.num_images))
        weight_C[largest] = 0.0
    left = settings.num_images - int(size_C.sum())
    edge_C = np.rint(np.cumsum(weight_C) / weight_C.sum() * left).astype(np.int64)
    return size_C + np.diff(edge_C, prepend=0)


def true_classes(settings: GeneratedSettings, seed: int, row_M: np.ndarray, label_M: np.ndarray) -> np.ndarray:
    """int64 [M]: what each image shows, given its label: the label itself, a look-alike of it, or any other class."""

    def uniform(key: Key, about_M: np.ndarray) -> np.ndarray:
        return uniform_about(seed, Purpose.GENERATED, key, about_M)

    # Uniform around the noise that is asked: some classes are nearly clean, some mostly wrong, as people's labels are.
    rate_M = settings.noise + 0.8 * min(settings.noise, 1 - settings.noise) * (2 * uniform(Key.RATE, label_M) - 1)
    wrong_M = uniform(Key.WRONG, row_M) < rate_M
    # A few of the look-alikes are taken for the class far more often than the others.
    alike_M = look_alike(settings, seed, label_M, uniform(Key.LOOK_ALIKE, row_M) ** 2)
    confusing_M = (uniform(Key.KIND, row_M) < settings.confusing_share) & (alike_M != label_M)
    away_M = 1 + (hash_about(seed, Purpose.GENERATED, Key.ANY_CLASS, row_M) % np.uint64(settings.classes - 1))
    any_M = (label_M + away_M.astype(np.int64)) % settings.classes
    return np.where(wrong_M, np.where(confusing_M, alike_M, any_M), label_M)


def look_alike(settings: GeneratedSettings, seed: int, class_M: np.ndarray, which_M: np.ndarray) -> np.ndarray:
    """int64 [M]: another class of the same group, by which_M in [0, 1); the class itself where it is alone."""
    order = group_order(settings, seed)
    place_M = order(class_M)
    first_M = place_M // settings.look_alikes * settings.look_alikes
    in_group_M = np.minimum(settings.look_alikes, settings.classes - first_M)
    step_M = (in_group_M > 1) * (1 + ((in_group_M - 1) * which_M).astype(np.int64))
    return order.inverse(first_M + (place_M - first_M + step_M) % in_group_M)


def group_order(settings: GeneratedSettings, seed: int) -> KeyedPermutation:
    """From a class to its place among all groups: look-alikes lie far apart in the order of classes."""
    return KeyedPermutation(settings.classes, seed, Purpose.GENERATED, Key.GROUP_ORDER)


def features_of(
    settings: GeneratedSettings,
    seed: int,
    split: str,
    row_M: np.ndarray,
    label_M: np.ndarray,
    true_M: np.ndarray,
    around_MD: np.ndarray,
) -> np.ndarray:
    """float16 [M, D]: images of their true classes; around_MD, which is used up, says how they lie around these."""
    about_M = row_M + (SPLITS.index(split) << 44)  # rows of different splits are different things

    def uniform(key: Key, about_M: np.ndarray) -> np.ndarray:
        return uniform_about(seed, Purpose.GENERATED, key, about_M).astype(np.float32)

    around_MD *= (0.75 + 0.5 * uniform(Key.SPREAD_OF_CLASS, true_M))[:, None]
    around_MD *= (0.6 + 0.8 * uniform(Key.SPREAD_OF_IMAGE, about_M))[:, None]
    # No image is purely of its class: it resembles what it is taken for, or else a look-alike, more or less.
    alike_M = look_alike(settings, seed, true_M, np.zeros(len(true_M)))
    other_M = np.where(label_M != true_M, label_M, alike_M)
    share_M1 = settings.ambiguity * uniform(Key.AMBIGUITY, about_M)[:, None]
    around_MD += (1 - share_M1) * class_centres(settings, seed, true_M)
    around_MD += share_M1 * class_centres(settings, seed, other_M)
    return around_MD.astype(np.float16)


def around_centre(settings: GeneratedSettings, seed: int, split: str, block: int) -> np.ndarray:
    """float32 [BLOCK_ROWS, D]: how the images of a block lie around their centres; later features vary less."""
    rng = generator(seed, Purpose.GENERATED, Key.AROUND, SPLITS.index(split), block)
    around_MD = rng.standard_normal((BLOCK_ROWS, settings.width), np.float32)
    scale_D = (1.0 + np.arange(settings.width)) ** -0.15
    around_MD *= (scale_D / np.sqrt(np.mean(scale_D**2))).astype(np.float32)
    return around_MD


def class_centres(settings: GeneratedSettings, seed: int, class_M: np.ndarray) -> np.ndarray:
    """float32 [M, D]: centre of each class: that of its group, and its own distance from it."""
    group_M = group_order(settings, seed)(class_M) // settings.look_alikes
    centre_MD = directions_of(settings, seed, Key.CENTRE_OF_CLASS, class_M)
    centre_MD *= np.float32(settings.distance)
    centre_MD += directions_of(settings, seed, Key.CENTRE_OF_GROUP, group_M)
    return centre_MD


def directions_of(settings: GeneratedSettings, seed: int, key: Key, about_M: np.ndarray) -> np.ndarray:
    """float32 [M, D]: a standard normal vector for each thing, out of the table."""
    table_TD = directions(settings.width, seed)
    total_MD = np.zeros((len(about_M), settings.width), np.float32)
    for number in range(DIRECTIONS_OF_ONE):
        row_M = hash_about(seed, Purpose.GENERATED, int(key) + number, about_M) % np.uint64(len(table_TD))
        total_MD += table_TD[row_M.astype(np.int64)]
    return total_MD


@functools.lru_cache(maxsize=2)
def directions(width: int, seed: int) -> np.ndarray:
    """float32 [T, D] of normal numbers, of which DIRECTIONS_OF_ONE added have variance 1."""
    rng = generator(seed, Purpose.GENERATED, Key.DIRECTIONS)
    table_TD = rng.standard_normal((DIRECTIONS, width), np.float32)
    table_TD /= np.float32(np.sqrt(DIRECTIONS_OF_ONE))
    return table_TD


def generated_verification(settings: GeneratedSettings, seed: int) -> pa.Table:
    """The verification table of the training split: id, label, verified (1 or 0), verified_label (the true one)."""
    size_C = class_sizes(settings, seed)
    live_L = np.flatnonzero(size_C)
    order_L = np.argsort(hash_about(seed, Purpose.GENERATED, Key.VERIFIED, live_L), kind="stable")
    chosen = np.sort(live_L[order_L[: settings.verified_classes]])
    stop_C = np.cumsum(size_C)
    # Neighbours in the order of classes are anywhere among the rows: the first so many of a class are any of it.
    places = [stop_C[c] - size_C[c] + np.arange(min(int(size_C[c]), settings.verified_per_class)) for c in chosen]
    row_M = np.sort(row_order(settings, seed).inverse(np.concatenate([np.empty(0, np.int64), *places])))
    label_M, true_M = labels_of_rows(settings, seed, "train", row_M)
    return pa.table(
        {
            "id": row_ids("train", row_M),
            "label": named(settings, label_M),
            "verified": (label_M == true_M).astype(np.int8),
            "verified_label": named(settings, true_M),
        }
    )


def row_ids(split: str, row_M: np.ndarray) -> pa.Array:
    """The ids of images."""
    return pc.binary_join_element_wise(split, pc.utf8_lpad(pc.cast(pa.array(row_M), pa.string()), 9, "0"), "-")


def named(settings: GeneratedSettings, class_M: np.ndarray) -> pa.Array:
    """Labels as the data has them: integers, or names whose order is that of the integers."""
    if not settings.named:
        return pa.array(class_M, pa.int32())
    digits = len(str(settings.classes - 1))
    return pc.binary_join_element_wise(
        NAME_PREFIX, pc.utf8_lpad(pc.cast(pa.array(class_M), pa.string()), digits, "0"), ""
    )
