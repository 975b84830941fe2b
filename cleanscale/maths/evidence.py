"""Evidence: signals about one image and its noisy label that mean the same in every class.

What they are made of is out of fold: the heads that score an image have not been trained on it. Per class shard,
in three steps that exchange sums only:

1. `logit_signals`: log-probability, margin, rank, entropy, best other class; with them `class_sums`, which summed over
   shards give `denoised_prototypes` and `class_statistics`;
2. `cosine_signals`: cosine to the prototype of the class and its margin;
3. `class_signals`: the same relative to the other images of the class, class means, and how much of the class looks
   like the best other class; `other_class_signals`: how large that class is and how sure its own images are.

Step 3 needs all images of a class together, but only their few signals. The signals of an image do not depend on the
number of shards. With few classes all of them are compared; with many, only the candidates of each image and a sampled
tail that stands for the others, so that an image costs the same however many classes there are.

# N images, C classes (numbered from 0), D feature width, M candidates, S sampled tail, B block, K compared classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from cleanscale.maths.class_embeddings import unit
from cleanscale.maths.compared_classes import Compared, Others, blocks_of_rows, gathered_products
from cleanscale.maths.keyed_random import folds_of_rows

Signals = dict[str, np.ndarray]  # each float32 [N]

IMAGE_SIGNALS = ("log_probability", "margin", "log_rank", "entropy", "cosine", "cosine_margin")
RANKED_SIGNALS = ("log_probability", "margin", "entropy", "cosine", "cosine_margin")
CLASS_SIGNALS = (
    *(f"{name}_in_class" for name in RANKED_SIGNALS),
    *(f"{name}_class_mean" for name in (*RANKED_SIGNALS, "probability", "agreement")),
    "class_log_images",
    "pair_log_share",
)
FLOOR = -30.0  # log-probabilities below are all alike, and -inf would not do as a signal
OTHER_CLASS_SIGNALS = ("other_class_log_images", "other_class_log_probability")
SIGNALS = (*IMAGE_SIGNALS, *CLASS_SIGNALS, *OTHER_CLASS_SIGNALS)


class Scorer(Protocol):
    """A classifier head whose logits are embed(feature) . weight + bias (`models.heads.FrozenHead`)."""

    @property
    def weight_CH(self) -> np.ndarray: ...
    @property
    def bias_C(self) -> np.ndarray: ...
    def embed(self, feature_BD: np.ndarray) -> np.ndarray:
        """float32 [B, H]"""
        ...


@dataclass(frozen=True)
class OutOfFold:
    """Heads of which `scorers[f]` has not seen the rows of fold f, and the seed of those folds."""

    scorers: Sequence[Scorer]
    seed: int

    def log_probability(self, feature_ND: np.ndarray, row_N: np.ndarray) -> np.ndarray:
        """float32 [N, C] of all classes: only for collections of which images x classes fits in memory."""
        log_probability_NC = np.empty((len(row_N), len(self.scorers[0].bias_C)), np.float32)
        fold_N = folds_of_rows(self.seed, row_N, len(self.scorers))
        for fold, scorer in enumerate(self.scorers):
            at = np.flatnonzero(fold_N == fold)
            logit_XC = scorer.embed(feature_ND[at]) @ scorer.weight_CH.T + scorer.bias_C
            log_probability_NC[at] = logit_XC - _log_sum_exp(logit_XC)[:, None]
        return log_probability_NC

    def own_and_others(
        self, feature_BD: np.ndarray, row_B: np.ndarray, class_B: np.ndarray, others: Others
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits [B] of the own class and [B, K] of the others, each row by the head that has not seen it."""
        own_B = np.empty(len(row_B), np.float32)
        other_BK = np.empty(others.log_count_BK.shape, np.float32)
        fold_B = folds_of_rows(self.seed, row_B, len(self.scorers))
        for fold, scorer in enumerate(self.scorers):
            at = np.flatnonzero(fold_B == fold)
            if len(at):
                embedded_XH = scorer.embed(feature_BD[at])
                own_B[at] = (
                    gathered_products(embedded_XH, scorer.weight_CH, class_B[at, None])[:, 0]
                    + scorer.bias_C[class_B[at]]
                )
                bias_XK = scorer.bias_C if others.candidate_BM is None else scorer.bias_C[others.classes(at)]
                other_BK[at] = others.products(embedded_XH, scorer.weight_CH, at) + bias_XK
        return own_B, other_BK


@dataclass(frozen=True)
class ClassSums:
    """What a shard adds to the prototypes of its classes `first` .. `first` + C - 1; sums of several shards add up."""

    images_C: np.ndarray  # float64: number of images
    weight_C: np.ndarray  # float64: sum over images of the out-of-fold probability of their noisy label
    direction_CD: np.ndarray  # float64: the same sum, times the image's centred feature of length 1
    first: int = 0

    @classmethod
    def zeros(cls, num_classes: int, width: int, first: int = 0) -> ClassSums:
        return cls(np.zeros(num_classes), np.zeros(num_classes), np.zeros((num_classes, width)), first)

    @property
    def end(self) -> int:
        return self.first + len(self.weight_C)

    def __add__(self, other: ClassSums) -> ClassSums:
        first, end = min(self.first, other.first), max(self.end, other.end)
        total = ClassSums.zeros(end - first, self.direction_CD.shape[1], first)
        total += self
        total += other
        return total

    def __iadd__(self, other: ClassSums) -> ClassSums:
        """In place, for sums over very many classes: `other` must lie inside."""
        assert self.first <= other.first <= other.end <= self.end
        at = slice(other.first - self.first, other.end - self.first)
        self.images_C[at] += other.images_C
        self.weight_C[at] += other.weight_C
        self.direction_CD[at] += other.direction_CD
        return self


def class_sums(
    feature_ND: np.ndarray, class_N: np.ndarray, log_probability_N: np.ndarray, centre_D: np.ndarray
) -> ClassSums:
    """Sums for prototypes, over the range of classes of these images alone.

    Images count by the out-of-fold probability that their noisy label gets. `centre_D`: mean feature of all images.
    """
    first = int(class_N.min()) if len(class_N) else 0
    within_N = class_N - first
    size = int(within_N.max()) + 1 if len(class_N) else 0
    sums = ClassSums.zeros(size, feature_ND.shape[1], first)
    order = np.argsort(within_N, kind="stable")
    weight_N = np.exp(log_probability_N.astype(np.float64))
    for rows in blocks_of_rows(len(order), feature_ND.shape[1]):
        image_B = order[rows]
        weighted_BD = unit_rows(feature_ND[image_B], centre_D) * weight_N[image_B, None]
        label_X, start_X = np.unique(within_N[image_B], return_index=True)
        sums.direction_CD[label_X] += np.add.reduceat(weighted_BD, start_X, axis=0)
    sums.images_C[:] = np.bincount(within_N, minlength=size)
    sums.weight_C[:] = np.bincount(within_N, weight_N, minlength=size)
    return sums


def denoised_prototypes(sums: ClassSums) -> np.ndarray:
    """float32 [C, D] of length 1 from the sums of all classes; zeros for those without images: nothing is compared
    with them."""
    length_C = np.linalg.norm(sums.direction_CD, axis=1, keepdims=True)
    return (sums.direction_CD / np.where(length_C > 0, length_C, 1)).astype(np.float32)


def class_statistics(sums: ClassSums) -> np.ndarray:
    """float32 [C, 2] from the sums of all classes: log of the number of images, log of their mean own probability."""
    images_C = np.maximum(sums.images_C, 1)
    mean_C = np.where(sums.images_C > 0, sums.weight_C / images_C, 1)
    return np.stack([np.log(images_C), np.maximum(np.log(np.maximum(mean_C, 1e-30)), FLOOR)], axis=1).astype(np.float32)


@dataclass(frozen=True)
class ImageSignals:
    """Step 2 of one shard."""

    signals: Signals  # IMAGE_SIGNALS, or those that the logits give
    best_other_N: np.ndarray  # int64: the most probable class but the own; -1 where there is only one class
    best_other_log_probability_N: np.ndarray  # float32


@dataclass(frozen=True)
class CosineSignals:
    """What prototypes say of one shard."""

    signals: Signals
    nearest_other_N: np.ndarray  # int64: the class but the own whose prototype is nearest; -1 where there is none


def logit_signals(
    heads: OutOfFold, feature_ND: np.ndarray, class_N: np.ndarray, row_N: np.ndarray, compared: Compared
) -> ImageSignals:
    """The signals of each image of a shard that the out-of-fold heads give; of them step 1 takes `log_probability`."""
    signals = {name: np.empty(len(class_N), np.float32) for name in IMAGE_SIGNALS if not name.startswith("cosine")}
    best_N = np.empty(len(class_N), np.int64)
    best_log_probability_N = np.empty(len(class_N), np.float32)
    for rows in compared.blocks(len(class_N), _width(heads, feature_ND)):
        comparison = _Comparison.of(heads, feature_ND, class_N, row_N, compared, rows)
        best_N[rows], best_log_probability_N[rows] = comparison.best_other()
        for name, value_B in comparison.signals().items():
            signals[name][rows] = value_B
    return ImageSignals(signals, best_N, best_log_probability_N)


def cosine_signals(
    prototype_CD: np.ndarray, feature_ND: np.ndarray, class_N: np.ndarray, centre_D: np.ndarray, compared: Compared
) -> CosineSignals:
    """The signals of each image of a shard that the prototypes give.

    `centre_D` is the mean feature of all images, everywhere the same.
    """
    signals = {name: np.empty(len(class_N), np.float32) for name in ("cosine", "cosine_margin")}
    nearest_N = np.empty(len(class_N), np.int64)
    present_C = np.einsum("cd,cd->c", prototype_CD, prototype_CD) > 0  # classes without images have no prototype
    for rows in compared.blocks(len(class_N), feature_ND.shape[1]):
        others = compared.others(class_N[rows], rows)
        unit_BD = unit_rows(feature_ND[rows], centre_D)
        own_B = gathered_products(unit_BD, prototype_CD, class_N[rows, None])[:, 0]
        image_B = np.arange(len(unit_BD))
        cosine_BK = others.products(unit_BD, prototype_CD, image_B)
        class_BK = others.classes(image_B)
        present_BK = present_C if others.candidate_BM is None else present_C[class_BK]
        present_BK = present_BK & np.isfinite(others.log_count_BK)
        cosine_BK = np.where(present_BK, cosine_BK, -1)
        at_B = cosine_BK.argmax(axis=1)
        signals["cosine"][rows] = own_B
        signals["cosine_margin"][rows] = own_B - cosine_BK[image_B, at_B]
        nearest_N[rows] = np.where(present_BK[image_B, at_B], class_BK[image_B, at_B], -1)
    return CosineSignals(signals, nearest_N)


def image_signals(
    heads: OutOfFold,
    prototype_CD: np.ndarray,
    feature_ND: np.ndarray,
    class_N: np.ndarray,
    row_N: np.ndarray,
    centre_D: np.ndarray,
    compared: Compared,
) -> ImageSignals:
    """All IMAGE_SIGNALS of each image of a shard: `logit_signals` and `cosine_signals`."""
    found = logit_signals(heads, feature_ND, class_N, row_N, compared)
    cosines = cosine_signals(prototype_CD, feature_ND, class_N, centre_D, compared)
    signals = found.signals | cosines.signals
    return replace(found, signals={name: signals[name] for name in IMAGE_SIGNALS})


def class_signals(signals: Signals, class_N: np.ndarray, best_other_N: np.ndarray) -> Signals:
    """IMAGE_SIGNALS of all images of some classes -> CLASS_SIGNALS: logit of the rank within the class, class means.

    A huge class that is kept in several parts must come together here; its features need not. `pair_log_share`: how
    much of the class looks like the best other class of the image: the probability that images with the same best
    other class give to it, by the number of images of the class. Two classes that people confuse share many images.
    """
    grouped = _Grouped(class_N)
    found: Signals = {}
    for name in RANKED_SIGNALS:
        found[f"{name}_in_class"] = grouped.rank_logit(signals[name])
        found[f"{name}_class_mean"] = grouped.mean(signals[name])
    found["probability_class_mean"] = grouped.mean(np.exp(signals["log_probability"]))
    found["agreement_class_mean"] = grouped.mean(signals["margin"] >= 0)
    found["class_log_images"] = np.log(grouped.size_G)[grouped.group_N].astype(np.float32)
    _, pair_N = np.unique(np.stack([class_N, best_other_N]), axis=1, return_inverse=True)
    sum_P = np.bincount(pair_N, np.exp(signals["log_probability"] - signals["margin"], dtype=np.float64))
    share_N = sum_P[pair_N] / grouped.size_G[grouped.group_N]
    found["pair_log_share"] = np.log(np.maximum(share_N, 1e-30)).astype(np.float32)
    return {name: found[name] for name in CLASS_SIGNALS}


def other_class_signals(statistic_C2: np.ndarray, class_N: np.ndarray, best_other_N: np.ndarray) -> Signals:
    """OTHER_CLASS_SIGNALS: `class_statistics` of the best other class (of the own class where there is none)."""
    statistic_N2 = statistic_C2[np.where(best_other_N >= 0, best_other_N, class_N)]
    return {name: np.ascontiguousarray(statistic_N2[:, at]) for at, name in enumerate(OTHER_CLASS_SIGNALS)}


def cosine_to_class(
    feature_ND: np.ndarray, class_N: np.ndarray, vector_CD: np.ndarray, centre_D: np.ndarray
) -> np.ndarray:
    """float32 [N]: cosine of each image's centred feature to the vector of its class (0 where that is all zeros)."""
    cosine_N = np.empty(len(class_N), np.float32)
    for rows in blocks_of_rows(len(class_N), 2 * feature_ND.shape[1]):
        vector_BD = vector_CD[class_N[rows]]
        length_B = np.maximum(np.linalg.norm(vector_BD, axis=1), 1e-12)
        cosine_N[rows] = np.einsum("bd,bd->b", unit_rows(feature_ND[rows], centre_D), vector_BD) / length_B
    return cosine_N


def nearest_classes(
    feature_ND: np.ndarray, prototype_CD: np.ndarray, centre_D: np.ndarray, candidates: int
) -> np.ndarray:
    """int64 [N, M]: candidate classes by cosine to the prototypes, best first.

    In memory and exact, at a cost of N x C; in a run the faiss index over class embeddings answers the same question.
    """
    count = min(candidates, len(prototype_CD))
    nearest_NM = np.empty((len(feature_ND), count), np.int64)
    for rows in blocks_of_rows(len(feature_ND), len(prototype_CD)):
        cosine_BC = unit_rows(feature_ND[rows], centre_D) @ prototype_CD.T
        top_BM = np.argpartition(-cosine_BC, count - 1, axis=1)[:, :count]
        order_BM = np.argsort(-np.take_along_axis(cosine_BC, top_BM, 1), axis=1, kind="stable")
        nearest_NM[rows] = np.take_along_axis(top_BM, order_BM, 1)
    return nearest_NM


@dataclass(frozen=True)
class _Comparison:
    """Log-probabilities of a block of images: of the own class, and of the others that they are compared with."""

    own_B: np.ndarray
    other_BK: np.ndarray  # -inf where left out
    others: Others

    @classmethod
    def of(
        cls,
        heads: OutOfFold,
        feature_ND: np.ndarray,
        class_N: np.ndarray,
        row_N: np.ndarray,
        compared: Compared,
        rows: slice,
    ) -> _Comparison:
        others = compared.others(class_N[rows], rows)
        own_B, other_BK = heads.own_and_others(feature_ND[rows], row_N[rows], class_N[rows], others)
        other_BK = np.where(np.isfinite(others.log_count_BK), other_BK, -np.inf)
        normaliser_B = _log_sum_exp(np.concatenate([own_B[:, None], other_BK + others.log_count_BK], axis=1))
        return cls(np.maximum(own_B - normaliser_B, FLOOR), other_BK - normaliser_B[:, None], others)

    def best_other(self) -> tuple[np.ndarray, np.ndarray]:
        """(class or -1, log-probability) of the most probable class but the own."""
        at_B = self.other_BK.argmax(axis=1)
        image_B = np.arange(len(at_B))
        value_B = self.other_BK[image_B, at_B]
        best_B = self.others.classes(image_B)[image_B, at_B]
        return np.where(np.isfinite(value_B), best_B, -1), np.maximum(value_B, FLOOR)

    def signals(self) -> Signals:
        count_BK = np.exp(self.others.log_count_BK)
        other_BK = np.maximum(self.other_BK, FLOOR)
        entropy_B = -(count_BK * np.exp(other_BK) * other_BK).sum(axis=1) - np.exp(self.own_B) * self.own_B
        rank_B = (count_BK * (self.other_BK > self.own_B[:, None])).sum(axis=1)
        return {
            "log_probability": self.own_B,
            "margin": self.own_B - other_BK.max(axis=1),
            "log_rank": np.log1p(rank_B),
            "entropy": entropy_B,
        }


class _Grouped:
    """Images by class, for what is relative to the class."""

    def __init__(self, class_N: np.ndarray):
        _, self.group_N, self.size_G = np.unique(class_N, return_inverse=True, return_counts=True)
        self.start_G = np.cumsum(self.size_G) - self.size_G

    def mean(self, value_N: np.ndarray) -> np.ndarray:
        sum_G = np.bincount(self.group_N, np.asarray(value_N, np.float64), minlength=len(self.size_G))
        return (sum_G / self.size_G)[self.group_N].astype(np.float32)

    def rank_logit(self, value_N: np.ndarray) -> np.ndarray:
        """log(q / (1 - q)) of the share q of the class that lies below; equal values share their middle rank."""
        order = np.lexsort((value_N, self.group_N))
        sorted_N, group_N = value_N[order], self.group_N[order]
        first = np.flatnonzero(np.r_[True, (np.diff(sorted_N) != 0) | (np.diff(group_N) != 0)])
        run_N = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(order)]))
        middle_N = (first + np.diff(np.r_[first, len(order)]) / 2)[run_N]
        share_N = np.empty(len(order))
        share_N[order] = (middle_N - self.start_G[group_N]) / self.size_G[group_N]
        return np.log(share_N / (1 - share_N)).astype(np.float32)


def unit_rows(feature_ND: np.ndarray, centre_D: np.ndarray) -> np.ndarray:
    """float32 [N, D]: centred features of length 1."""
    return unit(feature_ND.astype(np.float32) - centre_D.astype(np.float32))


def _log_sum_exp(value_BX: np.ndarray) -> np.ndarray:
    top_B = value_BX.max(axis=1)
    return top_B + np.log(np.exp(value_BX - top_B[:, None]).sum(axis=1))


def _width(heads: OutOfFold, feature_ND: np.ndarray) -> int:
    return max(feature_ND.shape[1], heads.scorers[0].weight_CH.shape[1])
