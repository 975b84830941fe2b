"""MAP and AP_all of multi-label classifiers, with 95 % intervals by bootstrap over images (Veit et al. 2017,
evaluation).

MAP is the mean over classes of average precision: every class counts alike. AP_all ranks all (image, class) pairs
together: every label counts alike. Both are in [0, 1]. Classes without a right label in the test set have no
average precision and are left out. Groups of classes (by frequency, by noise rate) are measured beside all of them.
Nothing of size images x classes is held: ranges of classes are measured one by one, and what is added up is small.

# N test images, S classes of a range, R resamples of the images (the first is all of them, once), G groups, P positives
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cleanscale.maths.intervals import FEWEST_RESAMPLES, Measured
from cleanscale.maths.keyed_random import Purpose, generator

DECILES = 10
NOISE_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
# Pairs are ranked by logit in so many bins over -LOGITS .. LOGITS: fine ones for the value, coarse for its interval.
LOGITS, FINE_BINS, COARSE_BINS = 20.0, 1 << 16, 1 << 11
_IMAGES, _LABELS = 10, 11  # last parts of the random keys
_DRAWS = 500_000_000  # images x classes x resamples


@dataclass(frozen=True)
class Groups:
    """Groups of classes: the number of each class (-1: none) in each way of grouping, and the names by number."""

    number_C: dict[str, np.ndarray]
    names: dict[str, tuple[str, ...]]

    @classmethod
    def make(cls, images_C: np.ndarray, noise_C: np.ndarray) -> Groups:
        """images_C: training images with the noisy label; noise_C: share of these that is wrong, NaN not known."""
        present = np.flatnonzero(images_C > 0)
        frequency_C = np.full(len(images_C), -1)
        order = present[np.lexsort((present, -images_C[present]))]
        frequency_C[order] = np.arange(len(order)) * DECILES // max(len(order), 1)
        rate_C = np.searchsorted(NOISE_EDGES[1:-1], np.nan_to_num(noise_C), side="right")
        rate_C = np.where(np.isfinite(noise_C), rate_C, -1)
        bounds = [f"{100 * low:.0f}_to_{100 * high:.0f}" for low, high in itertools.pairwise(NOISE_EDGES)]
        return cls(
            {"all": np.zeros(len(images_C), np.int64), "frequency": frequency_C, "noise_rate": rate_C},
            {
                "all": ("all_classes",),
                "frequency": tuple(f"decile_{k + 1}" for k in range(DECILES)),
                "noise_rate": tuple(bounds),
            },
        )

    def of_range(self, start: int, stop: int) -> Groups:
        return Groups({kind: number_C[start:stop] for kind, number_C in self.number_C.items()}, self.names)


@dataclass
class Sums:
    """What ranges of classes add up to, for one way of grouping."""

    precision_RG: np.ndarray  # sum of the classes' average precision
    classes_RG: np.ndarray  # classes that have one
    fine_GB2: np.ndarray  # pairs by bin of the score: all, and those that are right
    coarse_RGB2: np.ndarray

    def add(self, other: Sums) -> None:
        for name in ("precision_RG", "classes_RG", "fine_GB2", "coarse_RGB2"):
            getattr(self, name).__iadd__(getattr(other, name))


def num_resamples(resamples: int, images: int, classes: int) -> int:
    return int(min(resamples, max(FEWEST_RESAMPLES, _DRAWS // max(images * classes, 1))))


def image_weights(images: int, resamples: int, seed: int) -> np.ndarray:
    """float32 [R, N]: how often each image is drawn; all once in the first row. The same for all ranges of classes."""
    rng = generator(seed, Purpose.BOOTSTRAP, _IMAGES)
    weight_RN = np.ones((resamples + 1, images), np.float32)
    for row in range(1, resamples + 1):
        weight_RN[row] = np.bincount(rng.integers(images, size=images), minlength=images)
    return weight_RN


def average_precisions(score_N: np.ndarray, right_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """float64 [R]: one class's average precision under each weighting; equal scores are one threshold.

    NaN where the weights leave no image with the class.
    """
    order_N = np.argsort(-score_N, kind="stable")
    sorted_N = score_N[order_N]
    at_P = np.flatnonzero(right_N[order_N])
    if not len(at_P):
        return np.full(len(weight_RN), np.nan)
    # The last place with the same score as each positive, and the positives up to there.
    end_P = len(sorted_N) - 1 - np.searchsorted(sorted_N[::-1], sorted_N[at_P], side="left")
    weight_RN = weight_RN[:, order_N]
    called_RP = np.cumsum(weight_RN, axis=1, dtype=np.float64)[:, end_P]
    own_RP = weight_RN[:, at_P].astype(np.float64)
    found_RP = np.cumsum(own_RP, axis=1)[:, np.searchsorted(at_P, end_P, side="right") - 1]
    total_R = own_RP.sum(axis=1)
    precision_R = (own_RP * found_RP / np.maximum(called_RP, 1.0)).sum(axis=1)
    return np.divide(precision_R, total_R, out=np.full(len(total_R), np.nan), where=total_R > 0)


def measure_range(logit_NS: np.ndarray, right_NS: np.ndarray, weight_RN: np.ndarray, groups: Groups) -> dict[str, Sums]:
    """Sums over one range of classes. The intervals of AP_all take FEWEST_RESAMPLES of the weightings."""
    precision_SR = np.array(
        [average_precisions(logit_NS[:, s], right_NS[:, s], weight_RN) for s in range(logit_NS.shape[1])]
    ).reshape(-1, len(weight_RN))
    has_SR = np.isfinite(precision_SR)
    few_RN = weight_RN[: FEWEST_RESAMPLES + 1]
    found = {}
    for kind, number_S in groups.number_C.items():
        count = len(groups.names[kind])
        sums = Sums(
            np.zeros((len(weight_RN), count)),
            np.zeros((len(weight_RN), count)),
            np.zeros((count, FINE_BINS, 2)),
            np.zeros((len(few_RN), count, COARSE_BINS, 2), np.float32),
        )
        for group in np.unique(number_S[number_S >= 0]):
            mine_S = number_S == group
            sums.precision_RG[:, group] = np.where(has_SR, precision_SR, 0.0)[mine_S].sum(axis=0)
            sums.classes_RG[:, group] = has_SR[mine_S].sum(axis=0)
            sums.fine_GB2[group] = _histograms(logit_NS[:, mine_S], right_NS[:, mine_S], few_RN[:1], FINE_BINS)[0]
            sums.coarse_RGB2[:, group] = _histograms(logit_NS[:, mine_S], right_NS[:, mine_S], few_RN, COARSE_BINS)
        found[kind] = sums
    return found


def _histograms(logit_NS: np.ndarray, right_NS: np.ndarray, weight_RN: np.ndarray, bins: int) -> np.ndarray:
    """[R, bins, 2]: weight of all pairs and of right pairs in each bin, the highest scores first."""
    bin_NS = ((LOGITS - logit_NS) * (bins / (2 * LOGITS))).clip(0, bins - 1).astype(np.int64)
    image_P, class_P = np.nonzero(right_NS)
    flat = bin_NS.reshape(-1)
    counts = np.empty((len(weight_RN), bins, 2))
    for row, weight_N in enumerate(weight_RN):
        counts[row, :, 0] = np.bincount(flat, np.repeat(weight_N, logit_NS.shape[1]), bins)
        counts[row, :, 1] = np.bincount(bin_NS[image_P, class_P], weight_N[image_P], bins)
    return counts


def precision_of_bins(count_XB2: np.ndarray) -> np.ndarray:
    """[X]: average precision of rankings given as histograms, a bin being one threshold; NaN without a right pair."""
    called_XB, found_XB = (np.cumsum(count_XB2[..., k], axis=-1, dtype=np.float64) for k in (0, 1))
    total_X = found_XB[..., -1]
    precision_X = (count_XB2[..., 1] * found_XB / np.maximum(called_XB, 1e-9)).sum(axis=-1)
    return np.divide(precision_X, total_X, out=np.full(np.shape(total_X), np.nan), where=total_X > 0)


def report(measured: Mapping[str, Mapping[str, Sums]], groups: Groups, images: int) -> dict[str, Any]:
    """The metrics of classifiers on the same test images, and each one's gain over the first of them.

    measured: sums by classifier and way of grouping. Returns {"map": {classifier: {group: measured or {...}}},
    "ap_all": ..., "difference": {classifier: {first: {"map": ..., "ap_all": ...}}}}; n counts test images.
    """
    value = {
        name: {kind: {"map": _maps(one), "ap_all": _ap_alls(one)} for kind, one in kinds.items()}
        for name, kinds in measured.items()
    }
    first = next(iter(measured))

    def table(name: str, measure: str, minus: str | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind, names in groups.names.items():
            draw_RG = value[name][kind][measure] - (value[minus][kind][measure] if minus else 0.0)
            each = {
                group: Measured.of_draws(draw_RG[0, g], draw_RG[1:, g], images).to_json()
                for g, group in enumerate(names)
                if measured[name][kind].classes_RG[0, g]
            }
            found |= each if kind == "all" else {kind: each}
        return found

    measures = ("map", "ap_all")
    return {measure: {name: table(name, measure) for name in measured} for measure in measures} | {
        "difference": {
            name: {first: {measure: table(name, measure, first) for measure in measures}}
            for name in measured
            if name != first
        },
        "classes": {
            kind: {
                group: int(measured[first][kind].classes_RG[0, g])
                for g, group in enumerate(names)
                if measured[first][kind].classes_RG[0, g]
            }
            for kind, names in groups.names.items()
        },
    }


def _maps(sums: Sums) -> np.ndarray:
    """[R, G]"""
    empty = np.full(sums.classes_RG.shape, np.nan)
    return np.divide(sums.precision_RG, sums.classes_RG, out=empty, where=sums.classes_RG > 0)


def _ap_alls(sums: Sums) -> np.ndarray:
    """[R, G]: the first from fine bins; the draws from coarse ones, moved by what coarseness changes in the first."""
    fine_G, coarse_RG = precision_of_bins(sums.fine_GB2), precision_of_bins(sums.coarse_RGB2)
    return np.concatenate([fine_G[None], coarse_RG[1:] + (fine_G - coarse_RG[0])])


# ---- labels of the training images -----------------------------------------------------------------------------------

COUNTED = ("noisy", "false", "missing", "misjudged", "cleaned_false", "cleaned_missing")


def labels_report(kinds: Sequence[tuple[np.ndarray, np.ndarray]], *, resamples: int, seed: int) -> dict[str, Any]:
    """How wrong the labels are before and after cleaning, from counts per image.

    kinds: (distinct rows of COUNTED, images that have them) of each shard. "noisy" is what the images came with,
    "cleaned" what cleaning makes of them. error_of_labels: percent of the noisy labels that are judged wrongly (noisy:
    none is called wrong); false_per_image, missing_per_image: labels too many and too few.
    """
    count_UK, images_U = merged([count for count, _ in kinds], [images for _, images in kinds])
    n = int(images_U.sum())
    if n == 0:
        return {}
    rng = generator(seed, Purpose.BOOTSTRAP, _LABELS)
    draw_RU = np.concatenate([images_U[None], rng.multinomial(n, images_U / n, size=resamples)])
    sum_RK = draw_RU @ count_UK
    column = {name: sum_RK[:, k] for k, name in enumerate(COUNTED)}

    def measured(value_R: np.ndarray) -> dict[str, Any]:
        return Measured.of_draws(float(value_R[0]), value_R[1:], n).to_json()

    each = np.maximum(column["noisy"], 1)
    found = {}
    for name, prefix, error in (("noisy", "", "false"), ("cleaned", "cleaned_", "misjudged")):
        found[name] = {
            "error_of_labels": measured(100 * column[error] / each),
            "false_per_image": measured(column[f"{prefix}false"] / n),
            "missing_per_image": measured(column[f"{prefix}missing"] / n),
        }
    return found


def merged(counts: Sequence[np.ndarray], images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of all, and how many images have each."""
    if not counts:
        return np.zeros((0, len(COUNTED)), np.int64), np.zeros(0, np.int64)
    count_UK, place = np.unique(np.concatenate(counts), axis=0, return_inverse=True)
    total_U = np.bincount(place.reshape(-1), np.concatenate(images), len(count_UK))
    return count_UK, total_U.astype(np.int64)
