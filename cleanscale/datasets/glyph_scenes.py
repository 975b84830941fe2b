"""Glyphs with several characters on one picture: lists of labels, some missing, some false, with known truth.

Classes differ in how often they come (as one over the square root of their rank) and in how many of their labels
are false (from none to twice `wrong`), as search results and machine annotations do. A false label names a
character that looks like one on the picture, or any other. Everything is a function of (settings, seed, split), as
with single characters.

# N pictures of a split, C classes
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cleanscale.datasets import glyph_noise
from cleanscale.datasets.glyph_drawing import draw_scene, png
from cleanscale.datasets.glyph_fonts import glyph_classes
from cleanscale.datasets.glyphs import (
    SPLITS,
    GlyphFile,
    GlyphsSettings,
    check,
    files_of,
    per_class,
    picture_generator,
    row_id,
)
from cleanscale.maths.keyed_random import Purpose, generator
from cleanscale.maths.label_lists import LabelLists
from cleanscale.schema import RIGHT, WRONG

SCENES = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("label", pa.list_(pa.int32())),
        ("true_label", pa.list_(pa.int32())),
    ]
)
HIGHEST_RATE = 0.9  # share of a class's labels that is false
_TRUE, _CLASSES, _NOISE, _CHECKED = 10, 11, 12, 13  # parts of the random keys


class Scenes(NamedTuple):
    """The labels of a split; checked_N: somebody looked at all labels of the picture."""

    true: LabelLists
    noisy: LabelLists
    checked_N: np.ndarray


def num_scenes(settings: GlyphsSettings, split: str) -> int:
    """Pictures of a split: as many as show each class as often, in the mean, as `per_class` says."""
    return round(settings.classes * per_class(settings, split) / ((1 + settings.per_image) / 2))


def scene_files(settings: GlyphsSettings) -> list[GlyphFile]:
    """The files of the data set. Raises ConfigError when the fonts hold fewer classes than are asked for."""
    check(settings)
    return files_of({split: num_scenes(settings, split) for split in SPLITS})


def scene_rows(settings: GlyphsSettings, seed: int, split: str, start: int, stop: int) -> pa.Table:
    """Rows start .. stop-1 of a split, the same whatever range they are made in."""
    scenes = scene_labels(settings, seed, split)
    codepoints = glyph_classes().codepoints
    rows = np.arange(start, stop)
    true = scenes.true.take(rows)
    images = []
    for row, first, last in zip(rows.tolist(), true.start_N1[:-1].tolist(), true.start_N1[1:].tolist(), strict=True):
        codes = [codepoints[label] for label in true.label_E[first:last].tolist()]
        images.append(png(draw_scene(codes, settings.size, picture_generator(seed, split, row))))
    columns = [
        pa.array([row_id(split, row) for row in rows.tolist()]),
        pa.array(images, pa.binary()),
        as_lists(scenes.noisy.take(rows)),
        as_lists(true),
    ]
    return pa.table(columns, schema=SCENES)


def as_lists(lists: LabelLists) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(lists.start_N1, pa.int32()), pa.array(lists.label_E, pa.int32()))


def scene_verification(settings: GlyphsSettings, seed: int) -> pa.Table:
    """id, label, verified of the checked training pictures: a verdict on every label, and the missing ones as right."""
    scenes = scene_labels(settings, seed, "train")
    rows = np.flatnonzero(scenes.checked_N)
    true, noisy = scenes.true.take(rows), scenes.noisy.take(rows)
    pair_P2 = np.unique(
        np.concatenate([np.column_stack([one.image_E, one.label_E]) for one in (true, noisy)]), axis=0
    ).reshape(-1, 2)
    true_pairs = true.image_E * settings.classes + true.label_E
    right_P = np.isin(pair_P2[:, 0] * settings.classes + pair_P2[:, 1], true_pairs)
    return pa.table(
        {
            "id": pa.array([row_id("train", row) for row in rows[pair_P2[:, 0]].tolist()], pa.string()),
            "label": pa.array(pair_P2[:, 1], pa.int32()),
            "verified": pa.array(np.where(right_P, RIGHT, WRONG), pa.int8()),
        }
    )


@functools.lru_cache(maxsize=8)
def scene_labels(settings: GlyphsSettings, seed: int, split: str) -> Scenes:
    """All labels of a split: noisy for train, right for test and clean."""
    check(settings)
    position, rows = SPLITS.index(split), num_scenes(settings, split)
    true = true_labels(settings, seed, position, rows)
    if split != "train":
        return Scenes(true, true, np.zeros(rows, bool))
    alike = glyph_noise.look_alikes(glyph_classes().unit_CP[: settings.classes])
    noisy = noisy_labels(settings, true, alike, generator(seed, Purpose.GLYPHS, position, _NOISE))
    checked_N = np.zeros(rows, bool)
    rng = generator(seed, Purpose.GLYPHS, position, _CHECKED)
    checked_N[rng.permutation(rows)[: settings.verified_images]] = True
    return Scenes(true, noisy, checked_N)


def true_labels(settings: GlyphsSettings, seed: int, position: int, rows: int) -> LabelLists:
    """1 to `per_image` different characters on each picture."""
    rank_C = generator(seed, Purpose.GLYPHS, _CLASSES).permutation(settings.classes)  # the same in all splits
    share_C = (rank_C + 1.0) ** -0.5
    share_C /= share_C.sum()
    rng = generator(seed, Purpose.GLYPHS, position, _TRUE)
    count_N = rng.integers(1, min(settings.per_image, settings.classes) + 1, size=rows)
    label_E = [np.sort(rng.choice(settings.classes, count, replace=False, p=share_C)) for count in count_N.tolist()]
    start_N1 = np.concatenate([[0], np.cumsum(count_N)]).astype(np.int64)
    return LabelLists(start_N1, np.concatenate([*label_E, np.empty(0, np.int64)]).astype(np.int64))


def noisy_labels(
    settings: GlyphsSettings, true: LabelLists, alike: glyph_noise.LookAlikes, rng: np.random.Generator
) -> LabelLists:
    """Each true label is missing with probability `missing`; then false ones come in, class by class.

    A picture that would be left without a label keeps one that is right.
    """
    rows, classes = len(true), settings.classes
    image_E = true.image_E
    kept_E = rng.random(len(image_E)) >= settings.missing
    rate_C = rng.permutation(np.linspace(0.0, min(2 * settings.wrong, HIGHEST_RATE), classes))
    images_of = [image_E[true.label_E == label] for label in range(classes)]
    pairs = [np.column_stack([image_E[kept_E], true.label_E[kept_E]])]
    for label in range(classes):
        kept = int(kept_E[true.label_E == label].sum())
        wanted = round(rate_C[label] / (1 - rate_C[label]) * kept)
        like = np.unique(np.concatenate([images_of[other] for other in alike.class_CL[label]]))
        like = rng.permutation(np.setdiff1d(like, images_of[label]))[: round(settings.confusing_share * wanted)]
        any_other = np.setdiff1d(np.arange(rows), np.concatenate([images_of[label], like]))
        false = np.concatenate([like, rng.permutation(any_other)[: wanted - len(like)]])
        pairs.append(np.column_stack([false, np.full(len(false), label)]))
    pair_P2 = np.concatenate(pairs)
    without = np.setdiff1d(np.arange(rows), pair_P2[:, 0])
    pair_P2 = np.concatenate([pair_P2, np.column_stack([without, true.label_E[true.start_N1[:-1][without]]])])
    return LabelLists.of_edges(pair_P2[:, 0], pair_P2[:, 1], np.arange(rows))
