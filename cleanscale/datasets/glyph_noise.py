"""Labels of the glyphs data set: which pictures come with a wrong label, and of which kind (Xiao et al. 2015).

Made from the side of the noisy label, as web data come: every class is a search that returns equally many pictures, of
which some show a look-alike (confusing noise) and some show anything (pointless noise).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from cleanscale.maths.keyed_random import Purpose, generator
from cleanscale.schema import UNSEEN

# N pictures, C classes, L look-alikes of a class, P pixels of a unit picture

NOISE_FREE, POINTLESS, CONFUSING = 0, 1, 2
LOOK_ALIKES = 3
# How often each look-alike is met; the second and third only where they are nearly as like as the first.
LOOK_ALIKE_SHARES = (0.6, 0.25, 0.15)
NEARLY_AS_LIKE = 0.9
# Second parts of the keys, so that labels, order and pictures are drawn independently of each other.
KEY_LABELS, KEY_ORDER, KEY_VERIFICATION, KEY_PICTURE = 0, 1, 2, 3


@dataclasses.dataclass(frozen=True)
class LookAlikes:
    """What each class is mistaken for, sparse: at most LOOK_ALIKES classes each. Not symmetric."""

    class_CL: np.ndarray  # int32 [C, L] other classes, most alike first
    share_CL: np.ndarray  # float64 [C, L] P(true = class_CL[o, .] | observed o, confusing); rows sum to 1
    cosine_CL: np.ndarray  # float32 [C, L] likeness of the mean unit pictures, from which the mean of all is taken away


@dataclasses.dataclass(frozen=True)
class Labels:
    """One split in its mixed order."""

    label_N: np.ndarray  # int32, noisy
    true_label_N: np.ndarray  # int32
    noise_type_N: np.ndarray  # int8: NOISE_FREE, POINTLESS, CONFUSING
    verified_N: np.ndarray  # int8: 1 right, 0 wrong, -1 nobody looked
    index_N: np.ndarray  # int64, which picture of the split (before mixing): the key of its drawing


def look_alikes(unit_CP: np.ndarray, block: int = 1024) -> LookAlikes:
    """The classes most alike to each, by cosine of their unit pictures. In blocks: C x C is never held."""
    picture_CP = unit_CP.astype(np.float32)
    picture_CP -= picture_CP.mean(axis=0)
    picture_CP /= np.maximum(np.linalg.norm(picture_CP, axis=1, keepdims=True), 1e-6)
    many = min(LOOK_ALIKES, len(picture_CP) - 1)
    class_CL = np.empty((len(picture_CP), many), np.int32)
    cosine_CL = np.empty((len(picture_CP), many), np.float32)
    for start in range(0, len(picture_CP), block):
        likeness = picture_CP[start : start + block] @ picture_CP.T
        rows = np.arange(len(likeness))
        likeness[rows, start + rows] = -np.inf
        best = np.argpartition(-likeness, many - 1, axis=1)[:, :many]
        by_likeness = np.argsort(-np.take_along_axis(likeness, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, by_likeness, axis=1)
        class_CL[start : start + len(best)] = best
        cosine_CL[start : start + len(best)] = np.take_along_axis(likeness, best, axis=1)
    share_CL = np.where(cosine_CL >= NEARLY_AS_LIKE * cosine_CL[:, :1], LOOK_ALIKE_SHARES[:many], 0.0)
    share_CL[:, 0] = LOOK_ALIKE_SHARES[0]
    return LookAlikes(class_CL, share_CL / share_CL.sum(axis=1, keepdims=True), cosine_CL)


def noisy_labels(
    seed: int, split: int, alike: LookAlikes, per_class: int, wrong: float, confusing_share: float
) -> Labels:
    """`per_class` pictures for each noisy label; round(wrong N) are wrong, round(confusing_share of those) confusing.

    Nobody has looked at any of them; `verify` does. The order is mixed over the classes.
    """
    num_classes = len(alike.class_CL)
    rows = num_classes * per_class
    rng = generator(seed, Purpose.GLYPHS, split, KEY_LABELS)
    label_N = np.repeat(np.arange(num_classes, dtype=np.int32), per_class)
    num_wrong = round(wrong * rows)
    num_confusing = round(confusing_share * num_wrong)
    unlucky = rng.permutation(rows)[:num_wrong]
    confusing, pointless = unlucky[:num_confusing], unlucky[num_confusing:]

    true_label_N = label_N.copy()
    true_label_N[confusing] = drawn_look_alikes(rng, alike, label_N[confusing])
    other = rng.integers(0, max(num_classes - 1, 1), len(pointless), dtype=np.int32)
    true_label_N[pointless] = other + (other >= label_N[pointless])  # uniform over the other classes
    noise_type_N = np.full(rows, NOISE_FREE, np.int8)
    noise_type_N[confusing], noise_type_N[pointless] = CONFUSING, POINTLESS

    order = generator(seed, Purpose.GLYPHS, split, KEY_ORDER).permutation(rows)
    return Labels(label_N[order], true_label_N[order], noise_type_N[order], np.full(rows, UNSEEN, np.int8), order)


def drawn_look_alikes(rng: np.random.Generator, alike: LookAlikes, label_N: np.ndarray) -> np.ndarray:
    """int32 [N]: for each noisy label one of its look-alikes, by their shares."""
    chance_N = rng.random(len(label_N))
    place_N = (chance_N[:, None] >= np.cumsum(alike.share_CL, axis=1)[label_N, :-1]).sum(axis=1)
    return alike.class_CL[label_N, place_N]


def verify(labels: Labels, seed: int, split: int, num_classes: int, classes: int, per_class: int) -> Labels:
    """The labels after somebody looked at `per_class` pictures of each of `classes` noisy labels (CleanNet, Eq. 1)."""
    rng = generator(seed, Purpose.GLYPHS, split, KEY_VERIFICATION)
    verified_N = labels.verified_N.copy()
    chosen = rng.permutation(num_classes)[:classes]
    by_label = np.argsort(labels.label_N, kind="stable")
    starts = np.searchsorted(labels.label_N[by_label], np.arange(num_classes + 1))
    for label in chosen:
        rows = rng.permutation(by_label[starts[label] : starts[label + 1]])[:per_class]
        verified_N[rows] = labels.label_N[rows] == labels.true_label_N[rows]
    return dataclasses.replace(labels, verified_N=verified_N)
